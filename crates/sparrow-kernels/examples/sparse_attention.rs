//! Attention of one token over a sparse cache against a dense one, at the shape of Llama 3.2 3B:
//! `cargo run --release -p sparrow-kernels --example sparse_attention [key sparsity] [value sparsity]`.
//!
//! Measured in turn, medians of ratios; as many layers as fill [`BYTES`], so that caches come from memory.

use sparrow_kernels::*;
use std::time::Instant;

/// Of the dense caches together.
const BYTES: usize = 1 << 29;
const ROUNDS: usize = 15;
/// Tokens that are stored together.
const STEP: usize = 512;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Values of a sum of uniform ones: most are small, as in a model.
fn values(n: usize, state: &mut u32) -> Vec<f32> {
    let mut uniform = || {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| uniform() + uniform() + uniform() + uniform()).collect()
}

fn main() {
    let mut sparsity = std::env::args().skip(1).map(|arg| arg.parse().expect("a sparsity is a number"));
    let (key_sparsity, value_sparsity) = (sparsity.next().unwrap_or(0.3), sparsity.next().unwrap_or(0.5));
    let compute = Compute::new(None);
    println!("{} on {} threads, keys {key_sparsity}, values {value_sparsity}", compute.isa(), compute.threads());
    let shape = AttentionShape { heads: 24, kv_heads: 8, head_dim: 128, scale: 0.088, soft_cap: None };
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    let mut state = 1;
    let q = values(heads * head_dim, &mut state);
    let mut out = vec![0.0; heads * head_dim];
    for dtype in [DType::BF16, DType::I8] {
        for capacity in [4096, 16384, 32768] {
            let cache = 2 * kv_heads * capacity * dtype.row_bytes(head_dim);
            let layers = BYTES.div_ceil(cache);
            let of =
                SparseKvShape { dtype, kv_heads, head_dim, capacity, key_sparsity, value_sparsity, sinks: 0, tail: 64 };
            let mut sparse: Vec<SparseKv> = (0..layers).map(|_| SparseKv::new(of)).collect();
            let mut dense: Vec<[Vec<u8>; 2]> = (0..layers).map(|_| [(); 2].map(|()| vec![0; cache / 2])).collect();
            for first in (0..capacity).step_by(STEP) {
                let [k, v] = [(); 2].map(|()| values(STEP * kv_heads * head_dim, &mut state));
                for (sparse, [keys, values]) in sparse.iter_mut().zip(&mut dense) {
                    sparse.store(&compute, first, &k, &v);
                    sparse.pack(&compute, None);
                    let kv = KvMut { dtype, keys, values, capacity };
                    compute.store_kv(kv, kv_heads, head_dim, first, &k, &v);
                }
            }
            let of_dense: Vec<KvRows> =
                dense.iter().map(|[keys, values]| KvRows::Dense(DenseKv { dtype, keys, values, capacity })).collect();
            let of_sparse: Vec<KvRows> = sparse.iter().map(|cache| KvRows::Sparse(cache.rows())).collect();
            let mut seconds = |caches: &[KvRows]| {
                let start = Instant::now();
                for &rows in caches {
                    let view = KvView { rows, start: 0, len: capacity };
                    compute.attention(&shape, &q, 1, &|_| view, &mut out);
                }
                start.elapsed().as_secs_f64() / layers as f64
            };
            let rounds: Vec<[f64; 3]> = (0..=ROUNDS)
                .map(|_| {
                    let (dense, sparse) = (seconds(&of_dense), seconds(&of_sparse));
                    [dense, sparse, read_bandwidth(&compute)]
                })
                .skip(1)
                .collect();
            let [d, s, bandwidth] = [0, 1, 2].map(|i| median(rounds.iter().map(|r| r[i]).collect()));
            let ratio = median(rounds.iter().map(|r| r[1] / r[0]).collect());
            let bytes = sparse[0].bytes();
            println!(
                "{dtype:5} {capacity:5}: dense {:.3} ms, {:.1} GB/s; sparse {:.3} ms, {:.1} GB/s; bytes {:.3}, time {ratio:.3}; read {bandwidth:.1} GB/s",
                d * 1e3,
                cache as f64 / d / 1e9,
                s * 1e3,
                bytes as f64 / s / 1e9,
                bytes as f64 / cache as f64,
            );
        }
    }
}
