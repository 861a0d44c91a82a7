//! x · Wᵀ + b.

use std::ffi::CStr;

use super::linear::linear;
use crate::torch::argument::{float, matrix, same_type};
use crate::torch::fault::Result;
use crate::torch::machine::compute;
use crate::torch::shim::{Operator, Stack};

/// x `[..., k]`, w `[n, k]`, b `[n]`, all of one type of floats, to `[..., n]`. Error: that of [`Compute::linear`], and
/// the rounding of the result to the type.
///
/// [`Compute::linear`]: sparrow_kernels::Compute::linear
pub struct DenseLinear;

impl Operator for DenseLinear {
    const NAME: &'static CStr = c"dense_linear";
    const SCHEMA: &'static CStr = c"dense_linear(Tensor x, Tensor w, Tensor? b=None) -> Tensor";

    fn call(stack: &mut Stack) -> Result<()> {
        let (x, w, b) = (stack.tensor()?, stack.tensor()?, stack.optional_tensor()?);
        float("x", &x)?;
        same_type("x", x.scalar_type(), "w", w.scalar_type())?;
        let weights = matrix("w", &w, "[out_features, in_features]")?;
        stack.give(linear(compute()?, &x, weights.into(), b.as_ref())?)
    }
}
