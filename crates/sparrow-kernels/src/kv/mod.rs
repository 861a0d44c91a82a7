//! Cached keys and values: dense or sparse, what rows see of them, and in what pieces they lie in memory.

pub(crate) mod block;
mod dense;
mod pieces;
mod sparse;
mod sparse_rows;
mod view;

pub(crate) use block::{BLOCK, BlockLayout};
pub use dense::{DenseKv, KvMut};
pub(crate) use pieces::{Piece, PieceRows};
pub(crate) use sparse::Store;
pub use sparse::{SparseKv, SparseKvShape};
pub use sparse_rows::{SparseKvError, SparseKvParts, SparseRows};
pub use view::{KvRows, KvView};
