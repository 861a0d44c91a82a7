//! Arguments of operators, checked: every message names the argument, what was expected and what was found.

use sparrow_kernels::{DType, Matrix};

use super::fault::{Fault, Result};
use super::scalar_type::ScalarType;
use super::shim::Tensor;

/// The element type of floats.
pub fn float(name: &str, t: &Tensor) -> Result<DType> {
    let found = t.scalar_type();
    found
        .float()
        .ok_or_else(|| Fault::DType(format!("{name}: expected dtype float32, float16 or bfloat16, found {found}")))
}

/// Refuses another element type than this.
pub fn of_type(name: &str, t: &Tensor, expected: ScalarType) -> Result<()> {
    let found = t.scalar_type();
    if found == expected {
        return Ok(());
    }
    Err(Fault::DType(format!("{name}: expected dtype {expected}, found {found}")))
}

/// Refuses another shape than this, whose meaning is `what`.
pub fn of_shape(name: &str, t: &Tensor, expected: &[usize], what: &str) -> Result<()> {
    let found = t.sizes();
    if found.len() == expected.len() && found.iter().zip(expected).all(|(&found, &expected)| found as usize == expected)
    {
        return Ok(());
    }
    Err(Fault::Shape(format!("{name}: expected shape {what} = {expected:?}, found {found:?}")))
}

/// Rows and columns of a tensor of two dimensions.
pub fn two_dimensions(name: &str, t: &Tensor, what: &str) -> Result<[usize; 2]> {
    match *t.sizes() {
        [rows, cols] => Ok([rows as usize, cols as usize]),
        ref found => Err(Fault::Shape(format!("{name}: expected 2 dimensions {what}, found shape {found:?}"))),
    }
}

/// The memory of a contiguous tensor.
pub fn contiguous<'a>(name: &str, t: &'a Tensor) -> Result<&'a [u8]> {
    if is_contiguous(t) {
        return Ok(t.bytes());
    }
    let (sizes, strides) = (t.sizes(), t.strides());
    Err(Fault::Shape(format!(
        "{name}: expected a contiguous tensor, found strides {strides:?} of shape {sizes:?}: call .contiguous()"
    )))
}

/// Whether elements lie one after another.
pub fn is_contiguous(t: &Tensor) -> bool {
    let mut expected = 1;
    for (&size, &stride) in t.sizes().iter().zip(t.strides()).rev() {
        if size != 1 && stride != expected {
            return t.sizes().contains(&0);
        }
        expected *= size;
    }
    true
}

/// Elements from one row to the next of a tensor `[rows, cols]`, whose elements within a row are neighbours.
pub fn row_stride(name: &str, t: &Tensor) -> Result<usize> {
    let (&[rows, cols], &[row, column]) = (t.sizes(), t.strides()) else {
        return Err(Fault::Internal(format!("{name}: the rows of a tensor without rows")));
    };
    if rows <= 1 || cols == 0 {
        if cols <= 1 || column == 1 {
            return Ok(cols as usize);
        }
    } else if (column == 1 || cols == 1) && row >= cols {
        return Ok(row as usize);
    }
    Err(Fault::Shape(format!(
        "{name}: expected rows of neighbouring elements, strides (at least {cols}, 1), found {:?}: call .contiguous()",
        t.strides()
    )))
}

/// A matrix of floats whose rows may lie apart, but not elements within a row.
pub fn matrix<'a>(name: &str, t: &'a Tensor, what: &str) -> Result<Matrix<'a>> {
    let dtype = float(name, t)?;
    let [rows, cols] = two_dimensions(name, t, what)?;
    if rows == 0 || cols == 0 {
        return Ok(Matrix::new(dtype, rows, cols, &[]));
    }
    Ok(Matrix::strided(dtype, rows, cols, row_stride(name, t)? * dtype.row_bytes(1), t.bytes()))
}

/// Rows and columns of activations `[..., columns]`.
pub fn rows_of(name: &str, t: &Tensor, what: &str) -> Result<[usize; 2]> {
    match t.sizes() {
        [] => Err(Fault::Shape(format!("{name}: expected shape {what}, found a tensor without dimensions"))),
        [rows @ .., columns] => Ok([rows.iter().map(|&n| n as usize).product(), *columns as usize]),
    }
}

/// Refuses another element type of `b` than that of `a`.
pub fn same_type(a: &str, of_a: ScalarType, b: &str, of_b: ScalarType) -> Result<()> {
    if of_a == of_b {
        return Ok(());
    }
    Err(Fault::DType(format!("{b}: expected the dtype of {a}, {of_a}, found {of_b}")))
}
