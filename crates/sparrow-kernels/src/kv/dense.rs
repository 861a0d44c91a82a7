//! Keys and values as they were stored.

use crate::dtype::DType;

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

/// A cache of keys and values that is being filled; see [`KvView`](crate::KvView).
pub struct KvMut<'a> {
    /// The type of both.
    pub dtype: DType,
    /// `[kv_heads, capacity, head_dim]`, any alignment.
    pub keys: &'a mut [u8],
    /// `[kv_heads, capacity, head_dim]`, any alignment.
    pub values: &'a mut [u8],
    /// Positions for which there is room.
    pub capacity: usize,
}
