//! Scores to masks.

use std::ffi::CStr;

use sparrow::internals::backend::{Of, mask};
use sparrow::internals::select::Threshold;
use sparrow_kernels::mask_words;

use crate::torch::argument::rows_of;
use crate::torch::fault::{Fault, Result};
use crate::torch::floats;
use crate::torch::machine::compute;
use crate::torch::scalar_type::ScalarType;
use crate::torch::shim::{Operator, Stack, Tensor};

/// scores `[..., n]` of floats to bools of that shape: which are active by `rule`, each row for itself. NaN never is.
pub struct Select;

impl Operator for Select {
    const NAME: &'static CStr = c"select";
    const SCHEMA: &'static CStr = c"select(Tensor scores, str rule) -> Tensor";

    fn call(stack: &mut Stack) -> Result<()> {
        let (scores, rule) = (stack.tensor()?, stack.string()?);
        let rule: Threshold = rule.parse().map_err(|error| Fault::Option(format!("rule: {error}")))?;
        let [_, n] = rows_of("scores", &scores, "[..., n]")?;
        let compute = compute()?;
        let mut values = floats::read(compute, "scores", &scores)?.into_owned();
        let mut out = Tensor::empty(scores.sizes(), ScalarType::Bool)?;
        let (mut spare, mut bits) = (Vec::new(), vec![0; mask_words(n)]);
        for (row, bools) in values.chunks_exact_mut(n.max(1)).zip(out.bytes_mut().chunks_exact_mut(n.max(1))) {
            mask(compute, rule, Of::Scores, row, &mut spare, &mut bits);
            for (word, bools) in bits.iter().zip(bools.chunks_mut(64)) {
                bools.iter_mut().enumerate().for_each(|(i, set)| *set = (word >> i & 1) as u8);
            }
        }
        stack.give(out.done())
    }
}
