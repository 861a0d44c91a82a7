//! The values that a quantised weight can have, and which of them a group of weights takes.

use half::{bf16, f16};
use sparrow_kernels::DType;

use super::options::{Along, QuantizeOptions};
use crate::layerwise::LayerMatrix;

/// The least scale of 4-bit weights, a normal number of f16 and of bf16: weights below half of it become zero.
const LEAST: f32 = f32::from_bits(0x3880_0000);
/// The greatest, below f16's and on bf16's grid.
const GREATEST: f32 = 65_280.0;

/// What codes there are, and how scales are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Grid {
    pub bits: u32,
    /// Weights that share a scale.
    pub group: usize,
    /// Where they lie.
    pub along: Along,
    /// Groups have zero points.
    pub zero_points: bool,
    /// What scales are stored in: bf16 or f16.
    pub stored: DType,
}

/// Rows that one task works on: products of matrices want many, threads want many tasks.
const ROWS: usize = 32;

/// What the codes of a group stand for: `(code − zero) · scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    pub scale: f32,
    /// A code.
    pub zero: f32,
}

impl Grid {
    /// What the weights of a matrix can be with so many bits.
    pub fn of(matrix: &LayerMatrix, bits: u32, options: &QuantizeOptions) -> Self {
        let &QuantizeOptions { group, along, zero_points, .. } = options;
        let group = if bits == 4 { group } else { None };
        // Scales have the type of the model, which other readers turn everything into; f16 for f32.
        let stored = if matrix.dtype == DType::BF16 { DType::BF16 } else { DType::F16 };
        Grid { bits, group: group.unwrap_or(matrix.cols), along, zero_points: zero_points && bits == 4, stored }
    }

    /// The lowest and the highest code; signed, as compressed-tensors counts before packing. 8 bits leave −128 out: the range is
    /// symmetric.
    pub fn codes(&self) -> (f32, f32) {
        let half = (1u32 << (self.bits - 1)) as f32;
        (if self.bits == 8 { 1.0 - half } else { -half }, half - 1.0)
    }

    /// Groups of so many weights.
    pub fn groups(&self, weights: usize) -> usize {
        weights.div_ceil(self.group)
    }

    /// Rows whose scales no other row has.
    pub fn rows(&self) -> usize {
        match self.along {
            Along::Input => ROWS,
            Along::Output => self.group,
        }
    }

    /// Scales of a matrix `[rows, n]`.
    pub fn scales(&self, rows: usize, n: usize) -> usize {
        match self.along {
            Along::Input => rows * self.groups(n),
            Along::Output => self.groups(rows) * n,
        }
    }

    /// Which scale the weight in row `r` and column `j` of `n` has: they are `[rows, groups]`, along outputs `[groups, n]`.
    #[inline(always)]
    pub fn scale_at(&self, r: usize, j: usize, n: usize) -> usize {
        match self.along {
            Along::Input => r * self.groups(n) + j / self.group,
            Along::Output => r / self.group * n + j,
        }
    }

    /// The code of the value nearest to `w`.
    #[inline(always)]
    pub fn code(&self, w: f32, of: Scale) -> f32 {
        let (low, high) = self.codes();
        nearest(w / of.scale + of.zero, low, high)
    }

    /// The value nearest to `w`.
    #[inline(always)]
    pub fn round(&self, w: f32, of: Scale) -> f32 {
        (self.code(w, of) - of.zero) * of.scale
    }

    /// The scale nearest to `scale` that files hold, and that a reader of f16 scales holds too.
    pub fn stored(&self, scale: f32) -> f32 {
        let to_file = |scale: f32| match self.stored {
            DType::F16 => f16::from_f32(scale).to_f32(),
            _ => bf16::from_f32(scale).to_f32(),
        };
        match self.bits {
            4 => to_file(scale.abs().clamp(LEAST, GREATEST)).copysign(scale),
            _ => Some(to_file(scale)).filter(|&scale| scale != 0.0).unwrap_or(LEAST),
        }
    }

    /// The scale of `weights` that errs least in `Σ importance · (w − rounded)²`: of ranges around that of the weights, each with the
    /// scale that is best for the codes that it gives.
    pub fn fit(&self, weights: &[f32], importance: &[f32]) -> Scale {
        let mut best = (f32::INFINITY, Scale { scale: LEAST, zero: 0.0 });
        let mut consider = |guess: f32, zero: f32| {
            let guess = Scale { scale: self.stored(guess), zero };
            let sums = self.sums(weights, importance, guess);
            let scale = if sums.squares > 0.0 { self.stored(sums.products / sums.squares) } else { guess.scale };
            // Less what the weights are by themselves, which is the same for all.
            let error = (scale * sums.squares - 2.0 * sums.products) * scale;
            if error < best.0 {
                best = (error, Scale { scale, zero });
            }
        };
        let (low, high) = self.codes();
        if self.zero_points {
            let (least, most) = weights.iter().fold((0.0f32, 0.0f32), |(l, m), &w| (l.min(w), m.max(w)));
            for i in 0..RANGES {
                let scale = (most - least) / (high - low) * range(i);
                let middle = low - least / scale.max(f32::MIN_POSITIVE);
                for shift in -SHIFTS..=SHIFTS {
                    consider(scale, (middle.round() + shift as f32).clamp(low, high));
                }
            }
        } else {
            let most = weights.iter().fold(0.0f32, |most, w| most.max(w.abs()));
            for i in 0..RANGES {
                let scale = most / -low * range(i);
                // There is one more negative code than positive ones: let it serve either side.
                consider(scale, 0.0);
                consider(-scale, 0.0);
            }
        }
        best.1
    }

    /// In lanes, so that the compiler may use vectors: sums of floats are in the order that they are written in.
    fn sums(&self, weights: &[f32], importance: &[f32], of: Scale) -> Sums {
        const LANES: usize = 8;
        let (mut products, mut squares) = ([0.0f32; LANES], [0.0f32; LANES]);
        let (low, high) = self.codes();
        let inverse = 1.0 / of.scale;
        let mut add = |lane: usize, w: f32, importance: f32| {
            let code = nearest(w * inverse + of.zero, low, high) - of.zero;
            products[lane] += importance * w * code;
            squares[lane] += importance * code * code;
        };
        let ((weights, rest), (importances, others)) = (weights.as_chunks::<LANES>(), importance.as_chunks::<LANES>());
        for (weights, importances) in weights.iter().zip(importances) {
            (0..LANES).for_each(|lane| add(lane, weights[lane], importances[lane]));
        }
        rest.iter().zip(others).for_each(|(&w, &importance)| add(0, w, importance));
        Sums { products: products.iter().sum(), squares: squares.iter().sum() }
    }
}

/// Over a group: `importance · weight · code` and `importance · code²`.
struct Sums {
    products: f32,
    squares: f32,
}

/// Ranges that are tried for a group.
const RANGES: usize = 24;

/// Codes that a zero point is moved by, at most, from where the range puts it.
const SHIFTS: i32 = 3;

/// Range `i`, as a fraction of that of the weights: 0.6 to 1.175.
fn range(i: usize) -> f32 {
    0.6 + i as f32 * 0.025
}

/// `x` rounded to a whole number, ties to even, between `low` and `high`.
#[inline(always)]
fn nearest(x: f32, low: f32, high: f32) -> f32 {
    // Adding and taking away 1.5 · 2²³ rounds what is small enough; unlike `round_ties_even` it is no call where SSE2 is all there is.
    const ROUND: f32 = 12_582_912.0;
    (x.max(low).min(high) + ROUND) - ROUND
}
