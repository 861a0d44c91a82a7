//! Weights with many zeros to bitmaps.

use std::ffi::CStr;

use sparrow_kernels::{DType, Matrix, count_stored, fill_bitmap};

use super::int8_linear::{assemble, check_columns};
use crate::torch::argument::{matrix, two_dimensions};
use crate::torch::fault::Result;
use crate::torch::machine::compute;
use crate::torch::scalar_type::ScalarType;
use crate::torch::shim::{Operator, Stack, Tensor};

const WHAT: &str = "[out_features, in_features]";

/// w `[n, k]` of floats or int8 to its `bitmask` `[n, ⌈k/8⌉]` uint8 (bit i mod 8 of byte i/8 of a row, the lowest first: element i is not
/// zero), `compressed` `[stored]` (those elements, row after row) and `row_offsets` `[n]` int64 (where a row begins in them): the
/// tensors of the `sparse-bitmask` format of compressed-tensors. −0.0 is stored.
pub struct Pack;

impl Operator for Pack {
    const NAME: &'static CStr = c"pack";
    const SCHEMA: &'static CStr = c"pack(Tensor w) -> (Tensor bitmask, Tensor compressed, Tensor row_offsets)";

    fn call(stack: &mut Stack) -> Result<()> {
        let w = stack.tensor()?;
        let compute = compute()?;
        let assembled;
        let weights = if w.scalar_type() == ScalarType::Int8 {
            let [n, k] = two_dimensions("w", &w, WHAT)?;
            check_columns("w", k)?;
            // Scales do not matter here.
            assembled = assemble("w", &w, &mut std::iter::repeat(1.0))?;
            Matrix::new(DType::I8, n, k, &assembled)
        } else {
            matrix("w", &w, WHAT)?
        };
        let (offsets, sizes) = count_stored(compute, weights);
        let n = weights.rows();
        let row_bytes = weights.cols().div_ceil(8);
        let mut bitmask = Tensor::empty(&[n as i64, row_bytes as i64], ScalarType::UInt8)?;
        let mut compressed = Tensor::empty(&[offsets[n] as i64], w.scalar_type())?;
        let mut row_offsets = Tensor::empty(&[n as i64], ScalarType::Int64)?;
        let mut scales = vec![0; sizes.scales];
        fill_bitmap(compute, weights, &offsets, bitmask.bytes_mut(), compressed.bytes_mut(), &mut scales);
        for (to, offset) in row_offsets.bytes_mut().as_chunks_mut().0.iter_mut().zip(&offsets) {
            *to = offset.to_le_bytes();
        }
        stack.give(bitmask.done())?;
        stack.give(compressed.done())?;
        stack.give(row_offsets.done())
    }
}
