//! One call of attention.

use crate::kernels::attention::AttentionShape;
use crate::kv::{DenseKv, KvRows, KvView};
use crate::parallel::SharedMut;

/// What the parts of one call to [`Compute::attention`](crate::Compute::attention) work on.
pub(super) struct Call<'a, 'c> {
    pub shape: &'a AttentionShape,
    /// `[rows, heads, head_dim]`.
    pub q: &'a [f32],
    pub kv: &'a (dyn Fn(usize) -> KvView<'c> + Sync),
    /// `[rows, heads, head_dim]`.
    pub out: SharedMut<'a, f32>,
}

/// Panics unless the view fits the shape.
pub(super) fn check(view: &KvView, shape: &AttentionShape) {
    let stored = match &view.rows {
        KvRows::Dense(DenseKv { dtype, keys, values, capacity }) => {
            let bytes = shape.kv_heads * capacity * dtype.row_bytes(shape.head_dim);
            let what = "does not match [kv_heads, capacity, head_dim]";
            assert_eq!(keys.len(), bytes, "attention: keys.len() {what}");
            assert_eq!(values.len(), bytes, "attention: values.len() {what}");
            *capacity
        }
        KvRows::Sparse(cache) => {
            let (found, expected) = ((cache.kv_heads, cache.head_dim), (shape.kv_heads, shape.head_dim));
            assert_eq!(found, expected, "attention: the cache's kv_heads and head_dim");
            cache.len
        }
    };
    let &KvView { start, len, .. } = view;
    assert!(start <= len && len <= stored, "attention: positions {start}..{len} of {stored}");
}
