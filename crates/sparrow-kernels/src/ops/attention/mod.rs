//! Attention of some rows over cached keys and values.
//!
//! A row that is alone in its cache (decoding) reads keys and values once, from memory: [`decode`] splits the work by key head
//! and by span of positions, [`span`] is its kernel. Rows that share a cache (prompts) are products of matrices: [`tiled`]
//! splits them by key head and by block of rows, [`widened`] multiplies in `f32`, [`amx`] in bf16. What is stored densely and
//! what is packed ([`SparseKv`]) are [`piece`]s of one sequence.

pub(crate) mod decode;
pub(crate) mod piece;
pub(crate) mod scalar;
pub(crate) mod span;
pub(crate) mod tiled;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_vbmi2;
#[cfg(target_arch = "x86_64")]
mod widened;

use crate::Compute;
use crate::dtype::DType;
use crate::ops::sparse_kv::SparseKv;
use crate::shared_mut::SharedMut;

/// The cached keys and values that one row may see.
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    /// The cache.
    pub rows: KvRows<'a>,
    /// The first visible position (above 0 for a sliding window).
    pub start: usize,
    /// The end of the visible positions: `start..len`.
    pub len: usize,
}

/// Keys and values of one sequence.
#[derive(Clone, Copy)]
pub enum KvRows<'a> {
    /// All as they were stored.
    Dense(DenseKv<'a>),
    /// Older ones pruned and packed.
    Sparse(&'a SparseKv),
}

/// Keys and values as they were stored.
#[derive(Clone, Copy)]
pub struct DenseKv<'a> {
    /// The type of both.
    pub dtype: DType,
    /// `[kv_heads, capacity, head_dim]`, any alignment.
    pub keys: &'a [u8],
    /// `[kv_heads, capacity, head_dim]`, any alignment.
    pub values: &'a [u8],
    /// Positions for which there is room.
    pub capacity: usize,
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
        let stored = match &self.rows {
            KvRows::Dense(DenseKv { dtype, keys, values, capacity }) => {
                let bytes = shape.kv_heads * capacity * dtype.row_bytes(shape.head_dim);
                let what = "does not match [kv_heads, capacity, head_dim]";
                assert_eq!(keys.len(), bytes, "attention: keys.len() {what}");
                assert_eq!(values.len(), bytes, "attention: values.len() {what}");
                *capacity
            }
            KvRows::Sparse(cache) => {
                let of = cache.shape();
                let (found, expected) = ((of.kv_heads, of.head_dim), (shape.kv_heads, shape.head_dim));
                assert_eq!(found, expected, "attention: the cache's kv_heads and head_dim");
                cache.len()
            }
        };
        let &Self { start, len, .. } = self;
        assert!(start <= len && len <= stored, "attention: positions {start}..{len} of {stored}");
    }

    fn dtype(&self) -> DType {
        match self.rows {
            KvRows::Dense(cache) => cache.dtype,
            KvRows::Sparse(cache) => cache.shape().dtype,
        }
    }

    /// Positions there is room for.
    fn capacity(&self) -> usize {
        match self.rows {
            KvRows::Dense(cache) => cache.capacity,
            KvRows::Sparse(cache) => cache.shape().capacity,
        }
    }

    /// Whether both look into the same cache.
    fn shares_cache(&self, other: &Self) -> bool {
        match (&self.rows, &other.rows) {
            (KvRows::Dense(a), KvRows::Dense(b)) => {
                a.dtype == b.dtype
                    && a.capacity == b.capacity
                    && std::ptr::eq(a.keys, b.keys)
                    && std::ptr::eq(a.values, b.values)
            }
            (KvRows::Sparse(a), KvRows::Sparse(b)) => std::ptr::eq(*a, *b),
            _ => false,
        }
    }
}

/// What the parts of one call to [`Compute::attention`] work on.
struct Call<'a, 'c> {
    shape: &'a AttentionShape,
    /// `[rows, heads, head_dim]`.
    q: &'a [f32],
    kv: &'a (dyn Fn(usize) -> KvView<'c> + Sync),
    /// `[rows, heads, head_dim]`.
    out: SharedMut<'a, f32>,
}

impl Compute {
    /// out = softmax(q·kᵀ · scale) · v for each row and head, with an optional soft cap on the scores.
    ///
    /// `q` and `out` are `[rows, heads, head_dim]`; `kv(row)` gives the keys and values that the row sees, so a causal mask is
    /// a `len` per row. A row that sees nothing gives zeros. The heads that share a key head read the cache once, and so do
    /// neighbouring rows of one sequence. Results depend neither on the number of threads nor on other sequences' rows.
    ///
    /// Error at most (head_dim + 16) · 2⁻²³ · scale · Σ|q·k| + (len + 64) · 2⁻²³, relative to the largest |v|. More than
    /// 8 neighbouring rows of one sequence over bf16 or int8 are multiplied in bf16 on the AMX tier: q and the weights
    /// of the softmax are rounded to it, keys and values are not; beside the bound above, which then holds for the rounded q,
    /// the weights' rounding adds at most 2⁻⁸ of the largest |v|.
    ///
    /// A NaN among the scores that a row sees, or a score of infinity, makes the row NaN; a value that is not finite reaches
    /// every row that sees it, and may reach rows of the same sequence and call that see only earlier positions.
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
        (0..rows).for_each(|row| kv(row).check(shape));
        let call = Call { shape, q, kv, out: SharedMut::new(out) };
        // Neighbouring rows that are alone in their caches are one region, rows that share one are another.
        let together = |row: usize| {
            let first = kv(row);
            (row + 1..rows).take_while(|&r| kv(r).shares_cache(&first)).count() + 1
        };
        let (mut alone, mut row) = (0, 0);
        while row < rows {
            let count = together(row);
            if let Some(kernel) = self.block_kernel(shape, kv(row).dtype(), count) {
                self.decode(&call, alone..row);
                self.blocks(&call, row..row + count, kernel);
                alone = row + count;
            }
            row += count;
        }
        self.decode(&call, alone..rows);
    }
}
