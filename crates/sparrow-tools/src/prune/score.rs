//! Pruning by a score of each weight: magnitude and Wanda.

use sparrow::Cpu;
use sparrow_kernels::{Matrix, decode};

use super::options::Pattern;

/// Rows that one task scores.
const ROWS: usize = 16;

/// Weights that compete with each other, and how many of them go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Group {
    /// This fraction of the whole matrix.
    Matrix(f64),
    /// Of each output's row.
    Row(f64),
    /// So many of each few weights of a row.
    Pattern(Pattern),
}

/// The whole number of weights that a fraction of `n` is, rounded down; decimals such as 0.29 · 100 come out as meant.
pub(super) fn count(fraction: f64, n: usize) -> usize {
    ((fraction * n as f64 + 1e-6).floor() as usize).min(n)
}

/// The bytes of `weights` with those of least `|w_ij| · norm_j` zeroed in each group; without norms by `|w_ij|`.
pub(super) fn prune(cpu: &Cpu, weights: Matrix, norms: Option<&[f32]>, group: Group) -> Vec<u8> {
    let (n, row_bytes) = (weights.cols(), weights.row_bytes());
    let element = row_bytes / n;
    let mut out = weights.bytes().to_vec();
    let (length, dropped) = match group {
        Group::Matrix(fraction) => {
            let mut scores = vec![0.0; weights.rows() * n];
            cpu.compute.pool().for_chunks(&mut scores, ROWS * n, &|i, scores| {
                for (r, scores) in scores.chunks_exact_mut(n).enumerate() {
                    score(weights, i * ROWS + r, norms, scores);
                }
            });
            zero(&mut out, element, smallest(scores.iter().copied(), count(fraction, scores.len()), &mut Vec::new()));
            return out;
        }
        Group::Row(fraction) => (n, count(fraction, n)),
        Group::Pattern(Pattern { keep, of }) => (of, of - keep),
    };
    cpu.compute.pool().for_chunks(&mut out, ROWS * row_bytes, &|i, rows| {
        let (mut scores, mut keys) = (vec![0.0; n], Vec::new());
        for (r, row) in rows.chunks_exact_mut(row_bytes).enumerate() {
            score(weights, i * ROWS + r, norms, &mut scores);
            for (scores, row) in scores.chunks(length).zip(row.chunks_mut(length * element)) {
                zero(row, element, smallest(scores.iter().copied(), dropped, &mut keys));
            }
        }
    });
    out
}

/// `|w_ij| · norm_j` of row `i`.
pub(super) fn score(weights: Matrix, i: usize, norms: Option<&[f32]>, scores: &mut [f32]) {
    decode(weights.dtype(), weights.row(i), scores);
    match norms {
        Some(norms) => scores.iter_mut().zip(norms).for_each(|(w, norm)| *w = w.abs() * norm),
        None => scores.iter_mut().for_each(|w| *w = w.abs()),
    }
}

fn zero(row: &mut [u8], element: usize, positions: &[u64]) {
    positions.iter().for_each(|&i| row[i as usize * element..][..element].fill(0));
}

/// The positions of the `count` smallest scores, of equal ones the first, in no order. Scores are not negative; `keys` is
/// working memory.
///
/// # Panics
/// If there are fewer, or more than a 32-bit number counts.
pub(super) fn smallest(scores: impl Iterator<Item = f32>, count: usize, keys: &mut Vec<u64>) -> &[u64] {
    keys.clear();
    // The bits of floats that are not negative are in the order of the floats.
    keys.extend(scores.enumerate().map(|(i, score)| u64::from(score.to_bits()) << 32 | i as u64));
    assert!(u32::try_from(keys.len()).is_ok() && count <= keys.len(), "{count} of {} scores", keys.len());
    if 0 < count && count < keys.len() {
        keys.select_nth_unstable(count - 1);
    }
    keys[..count].iter_mut().for_each(|key| *key &= u64::from(u32::MAX));
    &keys[..count]
}
