//! In what steps rows are read.

/// Up to this many activations an operation reads the weights as they are.
pub(crate) const FEW: usize = 8;
/// Columns of x are padded with zeros to a multiple of this for kernels that rearrange it.
pub(crate) const STEP: usize = 32;
/// Parts of rows start at multiples of this: groups of quantised elements stay whole.
pub(crate) const COLUMN_STEP: usize = 256;
