//! What SparseGPT leaves to gain: with all zeros in place, the weights that stay are set to what is best beside all others, by
//! conjugate gradients (arXiv 2406.07831).

use sparrow::Cpu;

use crate::layerwise::Hessian;

/// Rows that one task works on.
const ROWS: usize = 16;

/// Steps of conjugate gradients.
const STEPS: usize = 16;

/// Lowers the squared error `(new − old) · H · (new − old)ᵀ` of every row of `new`, `[rows, n]`, whose zeros stay.
pub(super) fn refit(cpu: &Cpu, old: &[f32], hessian: &Hessian, new: &mut [f32]) {
    let n = hessian.inputs();
    let inverse: Vec<f32> = hessian.diagonal().iter().map(|d| 1.0 / d).collect();
    cpu.compute.pool().for_chunks(new, ROWS * n, &|i, new| {
        let old = &old[i * ROWS * n..][..new.len()];
        let kept: Vec<bool> = new.iter().map(|w| *w != 0.0).collect();
        let mask = |mut values: Vec<f32>| {
            values.iter_mut().zip(&kept).for_each(|(v, kept)| *v = if *kept { *v } else { 0.0 });
            values
        };
        // What is left of the error's slope, downwards, and the step's direction, by row.
        let difference: Vec<f32> = old.iter().zip(&*new).map(|(old, new)| old - new).collect();
        let mut slope = mask(hessian.times(&difference));
        let scaled = |slope: &[f32]| -> Vec<f32> {
            slope.iter().zip(inverse.iter().cycle()).map(|(slope, inverse)| slope * inverse).collect()
        };
        let mut direction = scaled(&slope);
        let mut gain = products(&slope, &direction, n);
        for _ in 0..STEPS {
            let curved = mask(hessian.times(&direction));
            let curvature = products(&direction, &curved, n);
            for (r, (gain, curvature)) in gain.iter().zip(curvature).enumerate() {
                let step = if curvature > 0.0 { (gain / curvature) as f32 } else { 0.0 };
                for j in r * n..(r + 1) * n {
                    new[j] += step * direction[j];
                    slope[j] -= step * curved[j];
                }
            }
            let next = scaled(&slope);
            let next_gain = products(&slope, &next, n);
            for (r, (before, after)) in gain.iter().zip(&next_gain).enumerate() {
                let keep = if *before > 0.0 { (after / before) as f32 } else { 0.0 };
                for j in r * n..(r + 1) * n {
                    direction[j] = next[j] + keep * direction[j];
                }
            }
            gain = next_gain;
        }
    });
}

/// `a · b` of every row of `n`.
fn products(a: &[f32], b: &[f32], n: usize) -> Vec<f64> {
    let row = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    a.chunks_exact(n).zip(b.chunks_exact(n)).map(row).collect()
}
