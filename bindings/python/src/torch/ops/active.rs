//! Which neurons are active, from a mask of bools.

use sparrow_kernels::{mask_words, union_masks};

use crate::torch::argument::of_type;
use crate::torch::fault::{Fault, Result};
use crate::torch::floats::in_order;
use crate::torch::scalar_type::ScalarType;
use crate::torch::shim::Tensor;

/// The active neurons of some rows, as bits.
pub struct Active {
    /// `[rows, ceil(neurons / 64)]`; none where all rows have the same.
    pub masks: Option<Vec<u64>>,
    /// Of all rows, `[ceil(neurons / 64)]`.
    pub union: Vec<u64>,
}

impl Active {
    /// Of a mask `[neurons]` for all rows of x, or `[..., neurons]` with the leading dimensions of x.
    pub fn read(mask: &Tensor, x: &Tensor, neurons: usize) -> Result<Self> {
        of_type("active", mask, ScalarType::Bool)?;
        let leading = x.sizes().split_last().map_or(&[][..], |(_, leading)| leading);
        let (of_rows, last) = match mask.sizes().split_last() {
            Some((&last, [])) => (false, Some(last)),
            Some((&last, rows)) if rows == leading => (true, Some(last)),
            _ => (false, None),
        };
        if last != Some(neurons as i64) {
            let found = mask.sizes();
            let text = format!("active: expected shape [{neurons}] or {leading:?} + [{neurons}], found {found:?}");
            return Err(Fault::Shape(text));
        }
        let words = mask_words(neurons);
        let bools = in_order(mask);
        let masks: Vec<u64> = bools.chunks_exact(neurons.max(1)).flat_map(|row| row.chunks(64).map(word)).collect();
        let mut union = vec![0; words];
        union_masks(&masks, words, &mut union);
        Ok(Active { masks: of_rows.then_some(masks), union })
    }
}

/// The bits of at most 64 bools.
pub fn word(bools: &[u8]) -> u64 {
    bools.iter().rev().fold(0, |word, &set| word << 1 | u64::from(set != 0))
}
