//! What all linear layers share.

use sparrow_kernels::{Compute, LinearPart, Stored};

use crate::torch::argument::{of_shape, rows_of, same_type};
use crate::torch::fault::{Fault, Result};
use crate::torch::floats;
use crate::torch::shim::Tensor;

/// x · Wᵀ + b as a tensor like x, `[..., k]` to `[..., n]`.
///
/// # Errors
/// If x has no `[..., k]` floats, or b is not `[n]` of the type of x.
pub fn linear(compute: &Compute, x: &Tensor, weights: Stored, b: Option<&Tensor>) -> Result<Tensor> {
    let (n, k) = (weights.rows(), weights.cols());
    let [m, columns] = rows_of("x", x, "[..., in_features]")?;
    if columns != k {
        let found = x.sizes();
        return Err(Fault::Shape(format!("x: expected shape [..., {k}] by the weight [{n}, {k}], found {found:?}")));
    }
    let bias = match b {
        None => None,
        Some(b) => {
            same_type("x", x.scalar_type(), "b", b.scalar_type())?;
            of_shape("b", b, &[n], "[out_features]")?;
            Some(floats::read(compute, "b", b)?)
        }
    };
    let mut sizes = x.sizes().to_vec();
    if let Some(last) = sizes.last_mut() {
        *last = n as i64;
    }
    let values = floats::read(compute, "x", x)?;
    floats::write(compute, &sizes, x, |out| {
        compute.linear(&values, m, &mut [LinearPart { weights, bias: bias.as_deref(), out }]);
    })
}
