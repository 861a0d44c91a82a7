//! AWQ (arXiv 2306.00978): the values of an input that are large have their weights scaled up, so that rounding harms them less.

use sparrow::Cpu;

use super::grid::Grid;
use super::round;
use crate::layerwise::Hessian;

/// Exponents that are tried: 0 to 0.95.
const EXPONENTS: usize = 20;

/// Rows of a matrix that the search judges by.
const SAMPLE: usize = 64;

/// A matrix that reads the input.
pub(super) struct Reader<'a> {
    pub grid: Grid,
    /// `[rows, n]`.
    pub weights: &'a [f32],
}

/// What the weights of each value of the input are multiplied with: `magnitude^α`, with the α that errs least in the outputs over the
/// calibration text. None if that is 0, which leaves all as they are.
pub(super) fn search(cpu: &Cpu, readers: &[Reader], hessian: &Hessian, magnitudes: &[f32]) -> Option<Vec<f32>> {
    let n = magnitudes.len();
    let samples: Vec<Vec<f32>> = readers.iter().map(|reader| sample(reader.weights, n)).collect();
    let diagonal = hessian.diagonal();
    let error = |factors: &[f32]| -> f64 {
        let importance = importance(&diagonal, factors);
        let of_reader = |(reader, weights): (&Reader, &Vec<f32>)| {
            let mut scaled = weights.clone();
            scale_columns(&mut scaled, factors);
            let rounded = round::to_nearest(cpu, &reader.grid, scaled, n, &importance);
            let rows = rounded.values.chunks_exact(n).zip(weights.chunks_exact(n));
            let off = |(rounded, row): (&[f32], &[f32])| {
                let values = rounded.iter().zip(row).zip(factors);
                values.map(|((rounded, w), factor)| rounded / factor - w).collect::<Vec<f32>>()
            };
            hessian.error(cpu, &rows.flat_map(off).collect::<Vec<f32>>())
        };
        readers.iter().zip(&samples).map(of_reader).sum()
    };
    let candidates = (0..EXPONENTS).map(|i| factors(magnitudes, i as f32 / EXPONENTS as f32));
    let judged = candidates.map(|factors| (error(&factors), factors));
    let (at, (_, factors)) = judged.enumerate().min_by(|(_, (a, _)), (_, (b, _))| a.total_cmp(b))?;
    (at > 0).then_some(factors)
}

/// What an error of scaled weights counts.
pub(super) fn importance(diagonal: &[f32], factors: &[f32]) -> Vec<f32> {
    diagonal.iter().zip(factors).map(|(d, factor)| d / (factor * factor)).collect()
}

/// Multiplies column `j` of every row with `factors[j]`.
pub(super) fn scale_columns(weights: &mut [f32], factors: &[f32]) {
    let rows = weights.chunks_exact_mut(factors.len());
    rows.for_each(|row| row.iter_mut().zip(factors).for_each(|(w, factor)| *w *= factor));
}

/// `magnitude^exponent`, around 1.
fn factors(magnitudes: &[f32], exponent: f32) -> Vec<f32> {
    // What never comes in must not be scaled without bounds.
    const LEAST: f32 = 1e-4;
    let largest = magnitudes.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let raised = magnitudes.iter().map(|&m| (m / largest).max(LEAST).powf(exponent));
    let raised: Vec<f32> = raised.collect();
    let (least, most) = raised.iter().fold((f32::INFINITY, 0.0f32), |(l, m), &v| (l.min(v), m.max(v)));
    let middle = (least * most).sqrt();
    raised.into_iter().map(|v| v / middle).collect()
}

/// Rows that are evenly spread.
fn sample(weights: &[f32], n: usize) -> Vec<f32> {
    let rows = weights.len() / n;
    let taken = rows.min(SAMPLE);
    (0..taken).flat_map(|i| weights[i * rows / taken * n..][..n].iter().copied()).collect()
}
