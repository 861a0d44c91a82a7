//! What several conformance tests share.

// Every test target uses some of it.
#![allow(dead_code)]

use sparrow_kernels::*;

/// 2⁻²⁴, half the distance from 1 to the next `f32`.
pub const U: f64 = 1.0 / (1u64 << 24) as f64;
/// Around every vector, tile and word edge.
pub const EDGES: [usize; 16] = [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 257];

/// The tiers to test, each with one thread and with three.
pub fn tiers_to_test() -> Vec<Compute> {
    let required: Option<Isa> =
        std::env::var("SPARROW_REQUIRE_ISA").ok().map(|name| name.parse().expect("SPARROW_REQUIRE_ISA"));
    let mut found = Vec::new();
    for isa in Isa::ALL {
        match Compute::with_isa(isa, Some(1)) {
            Ok(compute) => {
                found.push(compute);
                found.push(Compute::with_isa(isa, Some(3)).unwrap());
            }
            Err(e) => {
                assert!(required.is_none_or(|required| isa > required), "required: {e}");
                println!("skipped: needs {isa} ({e})");
            }
        }
    }
    found
}

/// A small generator, so that every run sees the same numbers.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Uniform in -1..1.
    pub fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 16) as usize % n
    }
}

/// A stored matrix that starts at an odd address, and its values.
pub struct Sample {
    pub dtype: DType,
    pub rows: usize,
    pub cols: usize,
    pub bytes: Vec<u8>,
    pub skip: usize,
    pub values: Vec<f32>,
}

impl Sample {
    pub fn new(dtype: DType, rows: usize, cols: usize, values: &[f32]) -> Self {
        let row = dtype.row_bytes(cols);
        let mut bytes = vec![0xff; rows * row + 64];
        let skip = 1 + (64 - bytes.as_ptr() as usize % 64) % 63;
        let mut decoded = vec![0.0; rows * cols];
        for r in 0..rows {
            let stored = &mut bytes[skip + r * row..skip + (r + 1) * row];
            encode(dtype, &values[r * cols..(r + 1) * cols], stored);
            decode(dtype, stored, &mut decoded[r * cols..(r + 1) * cols]);
        }
        Self { dtype, rows, cols, bytes, skip, values: decoded }
    }

    pub fn random(dtype: DType, rows: usize, cols: usize, random: &mut Random) -> Self {
        Self::new(dtype, rows, cols, &random.values(rows * cols))
    }

    pub fn matrix(&self) -> Matrix<'_> {
        let size = self.rows * self.dtype.row_bytes(self.cols);
        Matrix::new(self.dtype, self.rows, self.cols, &self.bytes[self.skip..self.skip + size])
    }

    pub fn at(&self, row: usize, col: usize) -> f64 {
        f64::from(self.values[row * self.cols + col])
    }
}

#[track_caller]
pub fn assert_close(got: f32, want: f64, tolerance: f64, context: &dyn Fn() -> String) {
    let close = if want.is_nan() {
        got.is_nan()
    } else if want.is_infinite() {
        f64::from(got) == want
    } else {
        (f64::from(got) - want).abs() <= tolerance
    };
    assert!(close, "{}: got {got}, want {want} within {tolerance:e}", context());
}

pub fn describe(compute: &Compute) -> String {
    format!("{} on {} threads", compute.isa(), compute.threads())
}
