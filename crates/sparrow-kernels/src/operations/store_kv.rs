//! Storing keys and values: rows of `f32` narrowed to the type of the cache.

use crate::compute::Compute;
use crate::dtype::DType;
use crate::kv::KvMut;
use crate::parallel::SharedMut;

/// Multiply-adds that storing one element is worth.
const COST: usize = 2;

impl Compute {
    /// Stores keys and values, `[rows, kv_heads, head_dim]` each, at positions `first..first + rows` of the cache,
    /// rounded as [`encode`](crate::encode) rounds each head's row. Parallel over rows.
    ///
    /// # Panics
    /// If the type is not one of [`DType::CACHES`](crate::DType::CACHES), the lengths do not match these shapes, or the positions are not within the capacity.
    pub fn store_kv(&self, cache: KvMut, kv_heads: usize, head_dim: usize, first: usize, keys: &[f32], values: &[f32]) {
        let KvMut { dtype, keys: key_cache, values: value_cache, capacity } = cache;
        assert!(DType::CACHES.contains(&dtype), "store_kv: no cache is kept in {dtype}");
        let (size, row_bytes) = (kv_heads * head_dim, dtype.row_bytes(head_dim));
        let rows = keys.len().checked_div(size).unwrap_or(0);
        let bytes = kv_heads * capacity * row_bytes;
        assert_eq!(keys.len(), rows * size, "store_kv: keys.len() is no multiple of kv_heads * head_dim");
        assert_eq!(values.len(), keys.len(), "store_kv: values.len() is not keys.len()");
        assert_eq!(key_cache.len(), bytes, "store_kv: the keys do not match [kv_heads, capacity, head_dim]");
        assert_eq!(value_cache.len(), bytes, "store_kv: the values do not match [kv_heads, capacity, head_dim]");
        assert!(
            first <= capacity && rows <= capacity - first,
            "store_kv: positions {first}..{} of {capacity}",
            first + rows
        );
        let work = 2 * COST * keys.len();
        let part = rows.div_ceil(self.workers.tasks(rows, work)).max(1);
        let encode = self.kernels.encode[dtype as usize];
        let pairs = [(keys, SharedMut::new(key_cache)), (values, SharedMut::new(value_cache))];
        self.workers.parallel(rows.div_ceil(part), work, &|task| {
            let rows = task * part..rows.min((task + 1) * part);
            for (from, to) in &pairs {
                for head in 0..kv_heads {
                    for row in rows.clone() {
                        let at = (head * capacity + first + row) * row_bytes;
                        // SAFETY: every position belongs to one task.
                        let to = unsafe { to.part(at..at + row_bytes) };
                        // SAFETY: the table holds only kernels that this CPU can run.
                        unsafe { encode(&from[row * size + head * head_dim..][..head_dim], to) };
                    }
                }
            }
        });
    }
}
