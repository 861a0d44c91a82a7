//! Attention of some rows over cached keys and values.

use super::axpy::AxpyRows;
use super::dot::{DotRows, Rows};
use crate::Compute;
use crate::dtype::DType;
use crate::shared_mut::SharedMut;

/// The cached keys and values that one row may see.
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    /// The type of both.
    pub dtype: DType,
    /// `[kv_heads, capacity, head_dim]`, any alignment.
    pub keys: &'a [u8],
    /// `[kv_heads, capacity, head_dim]`, any alignment.
    pub values: &'a [u8],
    /// Positions for which there is room.
    pub capacity: usize,
    /// The first visible position (above 0 for a sliding window).
    pub start: usize,
    /// The end of the visible positions: `start..len`.
    pub len: usize,
}

/// What all rows of a call to [`Compute::attention`] share.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads (grouped-query attention, arXiv 2305.13245): heads `g * kv .. g * (kv + 1)` share head `kv`,
    /// with `g = heads / kv_heads`.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Multiplies q·k; usually 1/√head_dim.
    pub scale: f32,
    /// c: scores become c · tanh(score / c) (Gemma 2, arXiv 2408.00118).
    pub soft_cap: Option<f32>,
}

impl Compute {
    /// out = softmax(q·kᵀ · scale) · v for each row and head, with an optional soft cap on the scores.
    ///
    /// `q` and `out` are `[rows, heads, head_dim]`; `kv(row)` gives the keys and values that the row sees, so a causal mask is
    /// a `len` per row. A row that sees nothing gives zeros. Parallel over rows and key heads; the heads that share a key
    /// head read the cache once. Error at most (head_dim/8 + 16) · 2⁻²² · scale · Σ|q·k| + (len + 64) · 2⁻²³, relative to the
    /// largest |v|.
    ///
    /// # Panics
    /// If `heads` is no multiple of `kv_heads`, a length does not match these shapes, or `start..len` is not within the
    /// capacity.
    pub fn attention<'a>(
        &self,
        shape: &AttentionShape,
        q: &[f32],
        rows: usize,
        kv: &(dyn Fn(usize) -> KvView<'a> + Sync),
        out: &mut [f32],
    ) {
        let &AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "attention: heads = {heads} is no multiple of kv_heads = {kv_heads}"
        );
        let size = rows * heads * head_dim;
        assert_eq!(q.len(), size, "attention: q.len() is not rows * heads * head_dim");
        assert_eq!(out.len(), size, "attention: out.len() is not rows * heads * head_dim");
        if size == 0 {
            return;
        }
        let visible = {
            let (first, last) = (kv(0), kv(rows - 1));
            first.len.max(last.len)
        };
        let group = heads / kv_heads;
        let part = group * head_dim;
        let out = SharedMut::new(out);
        self.parallel(rows * kv_heads, 2 * size * visible, &|task| {
            let (row, head) = (task / kv_heads, task % kv_heads);
            let range = task * part..(task + 1) * part;
            // SAFETY: each task has its own range.
            let out = unsafe { out.part(range.clone()) };
            self.attend(shape, &q[range], &kv(row), head, out);
        });
    }

    /// The heads of one row that share key head `head`: `q` and `out` are `[group, head_dim]`.
    fn attend(&self, shape: &AttentionShape, q: &[f32], kv: &KvView, head: usize, out: &mut [f32]) {
        let d = shape.head_dim;
        let group = q.len() / d;
        let row_bytes = d * kv.dtype.size_of();
        let bytes = shape.kv_heads * kv.capacity * row_bytes;
        assert_eq!(kv.keys.len(), bytes, "attention: keys.len() is not kv_heads * capacity * head_dim");
        assert_eq!(kv.values.len(), bytes, "attention: values.len() is not kv_heads * capacity * head_dim");
        assert!(
            kv.start <= kv.len && kv.len <= kv.capacity,
            "attention: positions {}..{} of {}",
            kv.start,
            kv.len,
            kv.capacity
        );
        out.fill(0.0);
        let count = kv.len - kv.start;
        if count == 0 {
            return;
        }
        let first = (head * kv.capacity + kv.start) * row_bytes;
        let visible = |cache: &[u8]| Rows {
            base: cache[first..first + count * row_bytes].as_ptr(),
            stride: row_bytes,
            ids: std::ptr::null(),
            count,
        };
        // Room for a full cache: it must not grow token by token.
        let mut scratch = self.scratch.take(group * kv.capacity);
        let scores = &mut scratch[..group * count];
        let dots = DotRows {
            rows: visible(kv.keys),
            k: d,
            x: q.as_ptr(),
            x_stride: d,
            m: group,
            out: scores.as_mut_ptr(),
            out_stride: count,
        };
        let dtype = kv.dtype as usize;
        // SAFETY: the table holds only kernels that this CPU can run; the visible keys, q and scores have these shapes.
        unsafe { (self.kernels.dot_rows[dtype])(&dots) };
        for row in scores.chunks_exact_mut(count) {
            // SAFETY: the table holds only kernels that this CPU can run.
            unsafe { (self.kernels.scale_scores)(row, shape.scale, shape.soft_cap) };
            // SAFETY: as above.
            unsafe { (self.kernels.softmax)(row) };
        }
        let sum = AxpyRows {
            rows: visible(kv.values),
            cols: d,
            a: scores.as_ptr(),
            a_stride: count,
            by_id: false,
            m: group,
            out: out.as_mut_ptr(),
            out_stride: d,
        };
        // SAFETY: the table holds only kernels that this CPU can run; the visible values, scores and out have these shapes.
        unsafe { (self.kernels.axpy_rows[dtype])(&sum) };
    }
}
