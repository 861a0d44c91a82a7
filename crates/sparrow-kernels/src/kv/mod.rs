//! Cached keys and values: dense or sparse, what rows see of them, and in what pieces they lie in memory.

pub(crate) mod block;
mod dense;
mod pieces;
mod sparse;
mod view;

pub(crate) use block::{BLOCK, BlockLayout};
pub use dense::{DenseKv, KvMut};
pub(crate) use pieces::{Piece, PieceRows};
pub(crate) use sparse::Store;
pub use sparse::{SparseKv, SparseKvShape};
pub use view::{KvRows, KvView};
