//! Attention of some rows over cached keys and values.
//!
//! A row that is alone in its cache (decoding) reads keys and values once, from memory: [`decode`] splits the work by
//! key head and by span of positions. Rows that share a cache (prompts) are products of matrices: [`blocks`] splits
//! them by key head and by block of rows. What is stored densely and what is packed ([`SparseKv`](crate::SparseKv)) are
//! pieces of one sequence.

mod blocks;
mod call;
mod decode;

use crate::compute::Compute;
use crate::dtype::DType;
use crate::kernels::attention::AttentionShape;
use crate::kv::KvView;
use crate::parallel::SharedMut;
use call::{Call, check};

impl Compute {
    /// out = softmax(q·kᵀ · scale) · v for each row and head, with an optional soft cap on the scores.
    ///
    /// `q` and `out` are `[rows, heads, head_dim]`; `kv(row)` gives the keys and values that the row sees, so a causal
    /// mask is a `len` per row. A row that sees nothing gives zeros. The heads that share a key head read the cache
    /// once, and so do neighbouring rows of one sequence. Results depend neither on the number of threads nor on other
    /// sequences' rows.
    ///
    /// Error at most (head_dim + 16) · 2⁻²³ · scale · Σ|q·k| + (len + 64) · 2⁻²³, relative to the largest |v|. More
    /// than 8 neighbouring rows of one sequence over bf16 or int8 are multiplied in bf16 on the AMX and AVX512-BF16 tiers: q and the
    /// weights of the softmax are rounded to it, keys and values are not; beside the bound above, which then holds for
    /// the rounded q, the weights' rounding adds at most 2⁻⁸ of the largest |v|.
    ///
    /// A NaN among the scores that a row sees, or a score of infinity, makes the row NaN; a value that is not finite
    /// reaches every row that sees it, and may reach rows of the same sequence and call that see only earlier
    /// positions.
    ///
    /// # Panics
    /// If the type of a cache is not one of [`DType::CACHES`](crate::DType::CACHES), `heads` is no multiple of `kv_heads`, a length does not match these shapes, or `start..len` is not within the
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
        for row in 0..rows {
            let view = kv(row);
            assert!(DType::CACHES.contains(&view.dtype()), "attention: no cache is kept in {}", view.dtype());
            check(&view, shape);
        }
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
