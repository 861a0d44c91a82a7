//! What is kept in memory: weights and caches.

mod cached;
mod kv;
mod sparse_kv;
mod weight_cache;
