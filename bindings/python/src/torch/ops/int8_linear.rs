//! Weights in 8 bits, with a scale for each row.

use std::borrow::Cow;
use std::ffi::CStr;

use sparrow_kernels::{DType, Matrix, assemble_int8, quantize};

use super::linear::linear;
use crate::torch::argument::{float, matrix, of_shape, of_type, row_stride, two_dimensions};
use crate::torch::fault::{Fault, Result};
use crate::torch::floats;
use crate::torch::machine::compute;
use crate::torch::scalar_type::ScalarType;
use crate::torch::shim::{Operator, Stack, Tensor};

/// The longest row whose sums fit 32 bits.
const MOST_COLUMNS: usize = 1 << 17;
const WHAT: &str = "[out_features, in_features]";

/// Refuses rows that are too long.
pub fn check_columns(name: &str, columns: usize) -> Result<()> {
    if columns <= MOST_COLUMNS {
        return Ok(());
    }
    Err(Fault::Shape(format!("{name}: expected at most {MOST_COLUMNS} columns of int8, found {columns}")))
}

/// x `[..., k]` of floats, q `[n, k]` int8, scale `[n]` or `[n, 1]` float32, b `[n]` of x's type: x · (q · scale)ᵀ + b, `[..., n]`.
/// Error: that of [`Compute::linear`] for int8.
///
/// Where q and scale are columns of one table as [`QuantizeInt8`] makes it, they are read in place; otherwise they are copied
/// into one for every call.
///
/// [`Compute::linear`]: sparrow_kernels::Compute::linear
pub struct Int8Linear;

impl Operator for Int8Linear {
    const NAME: &'static CStr = c"int8_linear";
    const SCHEMA: &'static CStr = c"int8_linear(Tensor x, Tensor q, Tensor scale, Tensor? b=None) -> Tensor";

    fn call(stack: &mut Stack) -> Result<()> {
        let (x, q, scale, b) = (stack.tensor()?, stack.tensor()?, stack.tensor()?, stack.optional_tensor()?);
        float("x", &x)?;
        of_type("q", &q, ScalarType::Int8)?;
        of_type("scale", &scale, ScalarType::Float32)?;
        let [n, k] = two_dimensions("q", &q, WHAT)?;
        check_columns("q", k)?;
        if scale.sizes() != [n as i64, 1] {
            of_shape("scale", &scale, &[n], "[out_features] or [out_features, 1]")?;
        }
        let compute = compute()?;
        let rows = match in_place(&q, &scale) {
            Some(rows) => Cow::Borrowed(rows),
            None => {
                let scales = floats::read(compute, "scale", &scale)?;
                Cow::Owned(assemble("q", &q, &mut scales.iter().copied())?)
            }
        };
        let weights = Matrix::new(DType::I8, n, k, &rows);
        stack.give(linear(compute, &x, weights.into(), b.as_ref())?)
    }
}

/// The rows of codes and scales, if they lie as kernels want them.
fn in_place<'a>(q: &'a Tensor, scale: &'a Tensor) -> Option<&'a [u8]> {
    let (&[n, k], &[row, column]) = (q.sizes(), q.strides()) else { return None };
    let bytes = DType::I8.row_bytes(k as usize);
    let apart = *scale.strides().first()?;
    let lie = n > 1 && k > 0 && column == 1 && row as usize == bytes && apart as usize * size_of::<f32>() == bytes;
    let rows = q.joined(scale, bytes - size_of::<f32>()).filter(|_| lie)?;
    Some(rows)
}

/// Rows as kernels want them, copied from the codes of `q` `[n, k]` and a scale for each.
pub fn assemble(name: &str, q: &Tensor, scales: &mut dyn Iterator<Item = f32>) -> Result<Vec<u8>> {
    let [n, k] = two_dimensions(name, q, WHAT)?;
    let (stride, codes, bytes) = (row_stride(name, q)?, q.bytes(), DType::I8.row_bytes(k));
    let mut rows = vec![0; n * bytes];
    let mut row_codes = vec![0; k];
    for ((i, row), scale) in rows.chunks_exact_mut(bytes).enumerate().zip(scales) {
        if k > 0 {
            row_codes.iter_mut().zip(&codes[i * stride..]).for_each(|(to, &code)| *to = code as i8);
        }
        assemble_int8(&row_codes, scale, row);
    }
    Ok(rows)
}

/// w `[n, k]` of floats to a table of int8 `[n, 4 · ⌈k/4⌉ + 4]`: the codes of a row, zeros, and the four bytes of its scale, a
/// float32. The largest magnitude of a row becomes 127, ties go to even; a row that is not finite gets the scale NaN.
pub struct QuantizeInt8;

impl Operator for QuantizeInt8 {
    const NAME: &'static CStr = c"quantize_int8";
    const SCHEMA: &'static CStr = c"quantize_int8(Tensor w) -> Tensor";

    fn call(stack: &mut Stack) -> Result<()> {
        let w = stack.tensor()?;
        let weights = matrix("w", &w, WHAT)?;
        check_columns("w", weights.cols())?;
        let bytes = DType::I8.row_bytes(weights.cols());
        let mut table = Tensor::empty(&[weights.rows() as i64, bytes as i64], ScalarType::Int8)?;
        quantize(compute()?, weights, DType::I8, table.bytes_mut());
        stack.give(table.done())
    }
}
