//! What the tests share.

use sparrow_kernels::*;

/// 2⁻²⁴, half the distance from 1 to the next `f32`.
pub const U: f64 = 1.0 / (1u64 << 24) as f64;
/// Around every vector, tile and word edge.
pub const EDGES: [usize; 16] = [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 257];

/// The tiers to test, each with one thread and with three, and the tables that a better one of their tier hides.
pub fn tiers_to_test() -> Vec<Compute> {
    let required: Option<Isa> =
        std::env::var("SPARROW_REQUIRE_ISA").ok().map(|name| name.parse().expect("SPARROW_REQUIRE_ISA"));
    let mut found = Compute::all(1);
    for isa in Isa::ALL {
        match Compute::with_isa(isa, Some(3)) {
            Ok(compute) => found.push(compute),
            Err(e) => {
                assert!(required.is_none_or(|required| isa > required), "required: {e}");
                println!("skipped: needs {isa} ({e})");
            }
        }
    }
    for table in ["avx2 with AVX-VNNI", "avx512 with VNNI and VBMI2"] {
        if !found.iter().any(|compute| compute.table() == table) {
            println!("skipped: needs {}", table.rsplit_once(" with ").unwrap().1);
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
    /// The largest magnitude of each row.
    largest: Vec<f32>,
}

/// The largest magnitude of each row of `cols` values.
fn largest(values: &[f32], cols: usize) -> Vec<f32> {
    values.chunks(cols.max(1)).map(|row| row.iter().fold(0.0, |a: f32, v| a.max(v.abs()))).collect()
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
        let largest = largest(&decoded, cols);
        Self { dtype, rows, cols, bytes, skip, values: decoded, largest }
    }

    pub fn random(dtype: DType, rows: usize, cols: usize, random: &mut Random) -> Self {
        if dtype.is_writable() {
            return Self::new(dtype, rows, cols, &random.values(rows * cols));
        }
        let zeros = vec![0.0; rows * cols];
        let (mut sample, row) = (Self::new(DType::F32, rows, cols, &zeros), dtype.row_bytes(cols));
        (sample.dtype, sample.bytes, sample.skip) = (dtype, vec![0xff; rows * row + 64], 0);
        sample.skip = 1 + (64 - sample.bytes.as_ptr() as usize % 64) % 63;
        for r in 0..rows {
            let stored = &mut sample.bytes[sample.skip + r * row..][..row];
            random_blocks(dtype, random, stored);
            decode(dtype, stored, &mut sample.values[r * cols..(r + 1) * cols]);
        }
        sample.largest = largest(&sample.values, cols);
        sample
    }

    /// What errors of a value are relative to: itself; with a scale per group also what a tier adds to codes to make them
    /// positive, which a group's largest value bounds; where a smallest value is added to it, more than both.
    pub fn size(&self, row: usize, col: usize) -> f64 {
        let largest = f64::from(self.largest[row]);
        match self.dtype {
            DType::F32 | DType::F16 | DType::BF16 | DType::I8 => self.at(row, col).abs(),
            dtype if HALVES.iter().any(|(with_least, at)| *with_least == dtype && at.len() == 2) => 8.0 * largest,
            _ => self.at(row, col).abs() + 2.0 * largest,
        }
    }

    /// What the largest code of a row is worth at most: a type's largest code may be twice what occurs.
    pub fn largest_size(&self, row: usize) -> f64 {
        2.0 * (0..self.cols).map(|col| self.size(row, col)).fold(0.0, f64::max)
    }

    pub fn matrix(&self) -> Matrix<'_> {
        let size = self.rows * self.dtype.row_bytes(self.cols);
        Matrix::new(self.dtype, self.rows, self.cols, &self.bytes[self.skip..self.skip + size])
    }

    pub fn at(&self, row: usize, col: usize) -> f64 {
        f64::from(self.values[row * self.cols + col])
    }
}

/// Where the blocks of types that are only read have their scales and smallest values, in `f16`.
const HALVES: [(DType, &[usize]); 11] = [
    (DType::Q4_0, &[0]),
    (DType::Q4_1, &[0, 2]),
    (DType::Q5_0, &[0]),
    (DType::Q5_1, &[0, 2]),
    (DType::Q2_K, &[80, 82]),
    (DType::Q3_K, &[108]),
    (DType::Q4_K, &[0, 2]),
    (DType::Q5_K, &[0, 2]),
    (DType::Q6_K, &[208]),
    (DType::IQ4_NL, &[0]),
    (DType::IQ4_XS, &[0]),
];

/// Blocks of any bits, with scales that make values of about 1.
pub fn random_blocks(dtype: DType, random: &mut Random, bytes: &mut [u8]) {
    let (_, halves) = HALVES.iter().find(|(known, _)| *known == dtype).expect("a type of blocks");
    let format = dtype.block().unwrap();
    bytes.iter_mut().for_each(|byte| *byte = (random.next() >> 20) as u8);
    for block in bytes.chunks_exact_mut(format.bytes) {
        for &at in *halves {
            let mut half = [0; 2];
            let scale = if format.elements == 256 { 2e-3 } else { 0.1 };
            encode(DType::F16, &[(1.5 + random.value()) * scale], &mut half);
            block[at..at + 2].copy_from_slice(&half);
        }
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
    format!("{} on {} threads", compute.table(), compute.threads())
}

/// A row of activations as products with quantised weights see it.
pub fn quantized(x: &[f32]) -> Vec<f32> {
    let max = x.iter().fold(0.0f32, |a, v| a.max(v.abs()));
    let (inverse, scale) = (32512.0 / max, max / 32512.0);
    x.iter().map(|v| if max == 0.0 { 0.0 } else { (v * inverse).round_ties_even() * scale }).collect()
}

/// The reference of an activation in `f64`, and its tolerance.
pub fn activation(a: Activation, x: f64) -> f64 {
    let logistic = |v: f64| 1.0 / (1.0 + (-v).exp());
    match a {
        Activation::Silu => x * logistic(x),
        Activation::Relu | Activation::DoubleRelu => relu(x),
        Activation::FatRelu(threshold) => {
            if x <= f64::from(threshold) {
                0.0
            } else {
                x
            }
        }
        Activation::ReluSquared => relu(x).powi(2),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::GeluSigmoid => x * logistic(1.702 * x),
        Activation::Identity => x,
    }
}

/// max(x, 0) that keeps NaN, unlike `f64::max`.
fn relu(x: f64) -> f64 {
    if x < 0.0 { 0.0 } else { x }
}

/// erf by its Taylor series; beyond 5 it is ±1 to `f32` precision.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..400 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
