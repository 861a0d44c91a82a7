//! Attention of rows that share a cache, in blocks, see [`tiled`](crate::kernels::attention::tiled).

use super::call::Call;
use crate::compute::Compute;
use crate::dtype::DType;
use crate::kernels::attention::AttentionShape;
use crate::kernels::attention::tiled::{Block, BlockFn};
use crate::rows::FEW;
use std::ops::Range;

/// Fewer queries than this read the cache row by row.
const ENOUGH: usize = 16;
/// Queries of a block: enough to be worth packing for, few enough for their sums to stay in L2.
const QUERIES: Range<usize> = 128..768;

impl Compute {
    /// The kernel for `rows` neighbouring rows of one cache, if there is one and they are worth it.
    pub(super) fn block_kernel(&self, shape: &AttentionShape, dtype: DType, rows: usize) -> Option<BlockFn> {
        if rows < 2 || rows * (shape.heads / shape.kv_heads) < ENOUGH {
            return None;
        }
        let rounded = if rows > FEW { self.kernels.block_rounded[dtype as usize] } else { None };
        rounded.or(self.kernels.block[dtype as usize])
    }

    /// Attention of `rows`, which share a cache.
    pub(super) fn blocks(&self, call: &Call, rows: Range<usize>, kernel: BlockFn) {
        let &Call { shape, q, kv, out } = call;
        let expand = self.expander();
        let group = shape.heads / shape.kv_heads;
        let share = (rows.len() * shape.kv_heads).div_ceil(4 * self.threads());
        let few = QUERIES.start.div_ceil(group);
        let block = share.clamp(few, few.max(QUERIES.end / group)).min(rows.len());
        let blocks = rows.len().div_ceil(block);
        let seen: usize = rows.clone().map(|row| kv(row).len - kv(row).start).sum();
        self.workers.parallel(blocks * shape.kv_heads, 2 * seen * shape.heads * shape.head_dim, &|task| {
            // The last rows see the most: they go first.
            let first = rows.start + (blocks - 1 - task / shape.kv_heads) * block;
            let rows = first..rows.end.min(first + block);
            let block = Block { shape, q, rows, head: task % shape.kv_heads, kv, expand, out };
            // SAFETY: the table holds only kernels that this CPU can run; tasks have disjoint rows and heads.
            unsafe { kernel(&self.workers.scratch, &block) };
        });
    }
}
