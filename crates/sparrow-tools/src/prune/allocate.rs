//! How much of each layer or matrix is pruned: less where scores have more outliers (OWL, arXiv 2310.05175), or where errors matter
//! more.

use sparrow::Cpu;
use sparrow_kernels::Matrix;

use super::score::score;

/// A score so many times the mean of its layer is an outlier.
const OUTLIER: f64 = 5.0;

/// How far a layer's sparsity may be from what was asked for.
const SPREAD: f64 = 0.08;

/// How far a matrix's may be.
const FURTHEST: f64 = 0.15;

/// How sparse a matrix may become.
const MOST: f64 = 0.95;

/// Halvings that find a threshold.
const STEPS: usize = 60;

/// Rows that one task scores.
const ROWS: usize = 16;

/// The fraction of a layer's Wanda scores, over all its matrices, that are outliers; with each matrix the norms of its inputs.
/// 0 for no matrix.
pub(super) fn outlier_ratio(cpu: &Cpu, matrices: &[(Matrix, &[f32])]) -> f64 {
    let weights: f64 = matrices.iter().map(|(m, _)| weights(*m)).sum();
    let total = |of: &(dyn Fn(&[f32]) -> f64 + Sync)| -> f64 {
        matrices.iter().map(|&(matrix, norms)| sum_rows(cpu, matrix, norms, of)).sum()
    };
    let mean = total(&|scores| scores.iter().map(|&s| f64::from(s)).sum()) / weights.max(1.0);
    let outliers = total(&|scores| scores.iter().filter(|&&s| f64::from(s) > OUTLIER * mean).count() as f64);
    outliers / weights.max(1.0)
}

fn weights(matrix: Matrix) -> f64 {
    (matrix.rows() * matrix.cols()) as f64
}

/// The sum over rows of what `of` says of a row's scores.
fn sum_rows(cpu: &Cpu, matrix: Matrix, norms: &[f32], of: &(dyn Fn(&[f32]) -> f64 + Sync)) -> f64 {
    let mut sums = vec![0.0; matrix.rows()];
    cpu.compute.pool().for_chunks(&mut sums, ROWS, &|i, sums| {
        let mut scores = vec![0.0; matrix.cols()];
        for (r, sum) in sums.iter_mut().enumerate() {
            score(matrix, i * ROWS + r, Some(norms), &mut scores);
            *sum = of(&scores);
        }
    });
    sums.iter().sum()
}

/// The sparsity of each layer from its outlier ratio and its number of weights: at most 0.08 from `target`, lower the more outliers
/// there are, and `target` on average over the weights. The paper scales ratios to a range of twice that and then shifts them to
/// the mean, which may take a layer further away; here the one furthest from the mean is at the limit.
pub(super) fn owl(layers: &[(f64, f64)], target: f64) -> Vec<f64> {
    let weights: f64 = layers.iter().map(|(_, weights)| weights).sum();
    let mean = layers.iter().map(|(ratio, weights)| ratio * weights).sum::<f64>() / weights;
    let pruned = layers.iter().filter(|(_, weights)| *weights > 0.0);
    let furthest = pruned.map(|(ratio, _)| (ratio - mean).abs()).fold(0.0, f64::max);
    let scale = if furthest > 0.0 { SPREAD / furthest } else { 0.0 };
    layers.iter().map(|(ratio, _)| target - scale * (ratio - mean)).collect()
}

/// Scores of a matrix.
pub(super) struct Scored {
    /// Of a sample of its weights, ascending.
    pub scores: Vec<f32>,
    /// How many weights it has.
    pub weights: f64,
    /// What scores are multiplied by to be compared with those of other matrices.
    pub worth: f64,
}

/// The sparsity of each matrix, `target` on average over the weights: what is left out is what scores least in the whole model, but
/// of no matrix more than [`FURTHEST`] more or less than the target.
pub(super) fn by_worth(matrices: &[Scored], target: f64) -> Vec<f64> {
    let all: f64 = matrices.iter().map(|m| m.weights).sum();
    let below = |m: &Scored, threshold: f64| {
        let below = m.scores.partition_point(|&score| f64::from(score) * m.worth < threshold);
        let fraction = below as f64 / m.scores.len().max(1) as f64;
        fraction.clamp((target - FURTHEST).max(0.0), (target + FURTHEST).min(MOST))
    };
    let left_out = |threshold: f64| matrices.iter().map(|m| m.weights * below(m, threshold)).sum::<f64>() / all;
    let highest = |m: &Scored| f64::from(m.scores.last().copied().unwrap_or(0.0)) * m.worth;
    let (mut low, mut high) = (0.0, 2.0 * matrices.iter().map(highest).fold(0.0, f64::max));
    for _ in 0..STEPS {
        let middle = (low + high) / 2.0;
        if left_out(middle) <= target { low = middle } else { high = middle }
    }
    matrices.iter().map(|m| below(m, low)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_with_outliers_keep_more_and_the_mean_is_the_target() {
        let layers = [(0.01, 100.0), (0.05, 300.0), (0.0, 100.0), (0.02, 50.0)];
        let sparsity = owl(&layers, 0.7);
        let mean = layers.iter().zip(&sparsity).map(|((_, w), s)| w * s).sum::<f64>() / 550.0;
        assert!((mean - 0.7).abs() < 1e-12, "{mean}");
        assert!(sparsity.iter().all(|s| (s - 0.7).abs() <= SPREAD + 1e-12), "{sparsity:?}");
        assert!(sparsity[1] < sparsity[3] && sparsity[3] < sparsity[0] && sparsity[0] < sparsity[2], "{sparsity:?}");
        assert_eq!(owl(&[(0.02, 1.0), (0.02, 1.0)], 0.5), [0.5, 0.5]);
        // A layer of which nothing is pruned has no say.
        assert_eq!(owl(&[(0.0, 0.0), (0.02, 1.0)], 0.5)[1], 0.5);
    }
    #[test]
    fn matrices_that_matter_keep_more_and_the_mean_is_the_target() {
        let scored = |weights, worth| Scored { scores: (0..1000).map(|i| i as f32).collect(), weights, worth };
        let matrices = [scored(100.0, 1.0), scored(300.0, 1.0), scored(100.0, 1.5), scored(50.0, 1e6)];
        let sparsity = by_worth(&matrices, 0.5);
        let mean = matrices.iter().zip(&sparsity).map(|(m, s)| m.weights * s).sum::<f64>() / 550.0;
        assert!((mean - 0.5).abs() < 2e-3, "{mean}");
        assert_eq!((sparsity[0], sparsity[3]), (sparsity[1], 0.35));
        assert!((sparsity[0] / sparsity[2] - 1.5).abs() < 0.01, "{sparsity:?}");
        assert_eq!(by_worth(&matrices[..2], 0.5), [0.5, 0.5]);
    }
}
