//! x · Wᵀ + b of weights with many zeros.

use std::ffi::CStr;

use sparrow_kernels::{Bitmap, BitmapParts, DType};

use super::int8_linear::check_columns;
use super::linear::linear;
use crate::torch::argument::{contiguous, float, of_shape, of_type, rows_of, same_type, two_dimensions};
use crate::torch::fault::{Fault, Result};
use crate::torch::machine::compute;
use crate::torch::scalar_type::ScalarType;
use crate::torch::shim::{self, Operator, Stack};

/// x `[..., k]` of floats, the three tensors of [`Pack`](super::pack::Pack), for int8 weight_scale `[n, 1]` float32, b `[n]` of
/// x's type, to `[..., n]`. Stored floats are of x's type. Error: that of [`Compute::linear`].
///
/// `check_invariants`: whether every bit is counted against the offsets first, which takes up to a tenth of the time of one
/// row. Without, the tensors must be as `pack` made them.
///
/// [`Compute::linear`]: sparrow_kernels::Compute::linear
pub struct SparseLinear;

impl Operator for SparseLinear {
    const NAME: &'static CStr = c"sparse_linear";
    const SCHEMA: &'static CStr = c"sparse_linear(Tensor x, Tensor bitmask, Tensor compressed, Tensor row_offsets, \
        Tensor? weight_scale=None, Tensor? b=None, *, bool check_invariants=True) -> Tensor";

    fn call(stack: &mut Stack) -> Result<()> {
        let (x, bitmask, compressed) = (stack.tensor()?, stack.tensor()?, stack.tensor()?);
        let (row_offsets, scale) = (stack.tensor()?, stack.optional_tensor()?);
        let (b, check_invariants) = (stack.optional_tensor()?, stack.bool()?);
        float("x", &x)?;
        let [_, cols] = rows_of("x", &x, "[..., in_features]")?;
        of_type("bitmask", &bitmask, ScalarType::UInt8)?;
        let [rows, _] = two_dimensions("bitmask", &bitmask, "[out_features, ceil(in_features / 8)]")?;
        of_shape("bitmask", &bitmask, &[rows, cols.div_ceil(8)], "[out_features, ceil(in_features / 8)] by x")?;
        of_type("row_offsets", &row_offsets, ScalarType::Int64)?;
        of_shape("row_offsets", &row_offsets, &[rows], "[out_features] by the bitmask")?;
        if compressed.sizes().len() != 1 {
            let found = compressed.sizes();
            return Err(Fault::Shape(format!("compressed: expected 1 dimension [stored], found shape {found:?}")));
        }
        let (dtype, scales) = match (compressed.scalar_type(), &scale) {
            (ScalarType::Int8, Some(scale)) => {
                check_columns("x", cols)?;
                of_type("weight_scale", scale, ScalarType::Float32)?;
                of_shape("weight_scale", scale, &[rows, 1], "[out_features, 1] by the bitmask")?;
                (DType::I8, contiguous("weight_scale", scale)?)
            }
            (ScalarType::Int8, None) => {
                return Err(Fault::DType("weight_scale: int8 weights need one, found None".into()));
            }
            (found, Some(_)) => {
                return Err(Fault::DType(format!(
                    "weight_scale: expected None for weights of {found}, found a tensor"
                )));
            }
            (found, None) => {
                same_type("x", x.scalar_type(), "compressed", found)?;
                (float("compressed", &compressed)?, &[][..])
            }
        };
        // A negative offset becomes one beyond everything.
        let offsets = contiguous("row_offsets", &row_offsets)?.as_chunks().0;
        let offsets = offsets.iter().map(|&offset| u64::from_le_bytes(offset));
        let stored = compressed.sizes()[0] as u64;
        let offsets: Vec<u64> = offsets.chain([stored]).collect();
        let (mask, values) = (contiguous("bitmask", &bitmask)?, contiguous("compressed", &compressed)?);
        let parts = BitmapParts { dtype, rows, cols, mask, offsets: &offsets, values, scales };
        let bitmap = if check_invariants { Bitmap::new(parts) } else { shim::trusted_bitmap(parts) };
        let bitmap = bitmap.map_err(|error| Fault::Shape(format!("bitmask, compressed, row_offsets: {error}")))?;
        stack.give(linear(compute()?, &x, bitmap.into(), b.as_ref())?)
    }
}
