//! Weights and activations to run kernels on.

use sparrow_kernels::{DType, Matrix, decode, encode};

/// Llama 3.2 3B.
pub const HIDDEN: usize = 3072;
pub const INTERMEDIATE: usize = 8192;
pub const HEADS: usize = 24;
pub const KV_HEADS: usize = 8;
pub const HEAD_DIM: usize = 128;
pub const VOCABULARY: usize = 128_256;

/// Bytes of weights: more than any last-level cache here, so that weights used in turn come from memory.
const BYTES: usize = 768 << 20;
/// Rows that differ; the others repeat them.
const DISTINCT: usize = 61;

/// Rows of `cols` random numbers in -1..1.
pub struct Weights {
    pub dtype: DType,
    pub cols: usize,
    bytes: Vec<u8>,
}

impl Weights {
    pub fn new(dtype: DType, cols: usize) -> Self {
        let row_bytes = dtype.row_bytes(cols);
        let mut distinct = vec![0; DISTINCT * row_bytes];
        for (i, row) in distinct.chunks_exact_mut(row_bytes).enumerate() {
            match dtype.is_writable() {
                true => encode(dtype, &random(cols, i as u64), row),
                // Any codes; as a scale this is a number of binary16 near 1.
                false => row.fill(0x3c),
            }
        }
        let rows = BYTES / row_bytes;
        let mut bytes = distinct.repeat(rows.div_ceil(DISTINCT));
        bytes.truncate(rows * row_bytes);
        Self { dtype, cols, bytes }
    }

    /// Matrices of `rows` rows that differ in place.
    pub fn matrices(&self, rows: usize) -> usize {
        self.bytes.len() / (rows * self.dtype.row_bytes(self.cols))
    }

    /// Matrix number `call` of `rows` rows: each takes the next rows, from the first again after the last.
    pub fn matrix(&self, call: usize, rows: usize) -> Matrix<'_> {
        let size = rows * self.dtype.row_bytes(self.cols);
        let first = call % self.matrices(rows) * size;
        Matrix::new(self.dtype, rows, self.cols, &self.bytes[first..first + size])
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Numbers in -1..1.
pub fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// As [`random`], all exact in bf16, so that tiers that round activations to it see what the others see.
pub fn activations(n: usize) -> Vec<f32> {
    let mut bytes = vec![0; 2 * n];
    encode(DType::BF16, &random(n, 77), &mut bytes);
    let mut values = vec![0.0; n];
    decode(DType::BF16, &bytes, &mut values);
    values
}

/// One number in `of` below `n`, without a pattern; the sets of 0..of are disjoint.
pub fn ids(n: usize, of: usize, set: usize) -> Vec<u32> {
    let shuffled = |i: u32| (i.wrapping_mul(2_654_435_761) >> 16) as usize;
    (0..n as u32).filter(|&i| (shuffled(i) + set).is_multiple_of(of)).collect()
}
