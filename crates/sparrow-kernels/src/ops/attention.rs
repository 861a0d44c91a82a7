//! Attention of some rows over cached keys and values.

use super::attention_tiled::{self, MAX_HEAD_DIM, QUERIES};
use super::axpy::AxpyRows;
use super::dot::{DotRows, Rows};
use super::gemm::FEW;
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

impl KvView<'_> {
    /// Panics unless the view fits the shape.
    fn check(&self, shape: &AttentionShape) {
        let bytes = shape.kv_heads * self.capacity * self.dtype.row_bytes(shape.head_dim);
        assert_eq!(self.keys.len(), bytes, "attention: keys.len() is not kv_heads * capacity * head_dim");
        assert_eq!(self.values.len(), bytes, "attention: values.len() is not kv_heads * capacity * head_dim");
        assert!(
            self.start <= self.len && self.len <= self.capacity,
            "attention: positions {}..{} of {}",
            self.start,
            self.len,
            self.capacity
        );
    }

    /// Whether both look into the same cache.
    fn shares_cache(&self, other: &Self) -> bool {
        self.dtype == other.dtype
            && self.capacity == other.capacity
            && std::ptr::eq(self.keys, other.keys)
            && std::ptr::eq(self.values, other.values)
    }
}

impl Compute {
    /// out = softmax(q·kᵀ · scale) · v for each row and head, with an optional soft cap on the scores.
    ///
    /// `q` and `out` are `[rows, heads, head_dim]`; `kv(row)` gives the keys and values that the row sees, so a causal mask is
    /// a `len` per row. A row that sees nothing gives zeros. Parallel over rows and key heads; the heads that share a key
    /// head read the cache once, and so do neighbouring rows of one sequence. Error at most (head_dim/8 + 16) · 2⁻²² · scale · Σ|q·k| + (len + 64) · 2⁻²³, relative to the
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
        let work = 2 * size * visible;
        // Enough rows for a tile of keys to be worth packing, but enough tasks for all threads.
        let share = (rows * kv_heads).div_ceil(4 * self.threads());
        let block = if rows > 1 && head_dim <= MAX_HEAD_DIM { QUERIES.div_ceil(group).min(share).max(1) } else { 1 };
        let out = SharedMut::new(out);
        self.parallel(rows.div_ceil(block) * kv_heads, work, &|task| {
            let head = task % kv_heads;
            let end = rows.min((task / kv_heads + 1) * block);
            let mut row = task / kv_heads * block;
            while row < end {
                let view = kv(row);
                view.check(shape);
                let same = (row + 1..end).take_while(|&r| kv(r).shares_cache(&view)).count() + 1;
                match self.kernels.attend[view.dtype as usize] {
                    Some(attend) if same * group >= FEW => {
                        let rows = row..row + same;
                        rows.clone().for_each(|r| kv(r).check(shape));
                        let block = attention_tiled::Block { shape, q, rows, head, kv, out };
                        // SAFETY: the table holds only kernels that this CPU can run; tasks have disjoint rows and heads.
                        unsafe { attend(self, &block) };
                        row += same;
                    }
                    _ => {
                        let range = (row * kv_heads + head) * part..(row * kv_heads + head + 1) * part;
                        // SAFETY: tasks have disjoint rows and heads.
                        let out = unsafe { out.part(range.clone()) };
                        self.attend(shape, &q[range], &view, head, out);
                        row += 1;
                    }
                }
            }
        });
    }

    /// The heads of one row that share key head `head`: `q` and `out` are `[group, head_dim]`.
    fn attend(&self, shape: &AttentionShape, q: &[f32], kv: &KvView, head: usize, out: &mut [f32]) {
        let d = shape.head_dim;
        let group = q.len() / d;
        let row_bytes = kv.dtype.row_bytes(d);
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
            cols: d,
        };
        // Room for a full cache: it must not grow token by token.
        let mut scratch = self.scratch.take(group * kv.capacity);
        let scores = &mut scratch[..group * count];
        let dots = DotRows {
            rows: visible(kv.keys),
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
            start: 0,
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
