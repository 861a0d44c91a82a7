use std::sync::OnceLock;

use nalgebra::DMatrix;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sparrow_kernels::{DType, Matrix, encode};
use sparrow_linalg::inverse_cholesky_factor;

use sparrow::Cpu;

use super::options::Pattern;
use super::score::{Group, count, smallest};
use super::{refit, score, sparsegpt};
use crate::layerwise::Hessian;

fn cpu() -> &'static Cpu {
    static CPU: OnceLock<Cpu> = OnceLock::new();
    CPU.get_or_init(|| Cpu::new(Some(3)))
}

/// A layer and the inputs it sees: correlated, and some much larger than others.
struct Layer {
    rows: usize,
    n: usize,
    weights: Vec<f32>,
    /// `[tokens, n]`.
    inputs: Vec<f32>,
}

impl Layer {
    fn random(rows: usize, n: usize, tokens: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut value = move || (random.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let weights = (0..rows * n).map(|_| value()).collect();
        let inputs = (0..tokens).flat_map(|_| {
            let common = value();
            (0..n).map(|j| (value() + common * (j % 3) as f32) * (0.2 + (j * 7 % 11) as f32 / 4.0)).collect::<Vec<_>>()
        });
        Layer { rows, n, weights, inputs: inputs.collect() }
    }

    /// `XᵀX` with SparseGPT's damping.
    fn hessian(&self) -> DMatrix<f64> {
        let x =
            DMatrix::from_row_iterator(self.inputs.len() / self.n, self.n, self.inputs.iter().map(|&v| f64::from(v)));
        let products = x.transpose() * x;
        let damping = 0.01 * products.diagonal().mean();
        products + DMatrix::identity(self.n, self.n) * damping
    }

    fn factor(&self) -> Vec<f32> {
        let hessian = self.hessian();
        inverse_cholesky_factor((0..self.n * self.n).map(|i| hessian[i] as f32).collect(), self.n).unwrap()
    }

    fn norms(&self) -> Vec<f32> {
        let square = |j: usize| self.inputs.iter().skip(j).step_by(self.n).map(|v| v * v).sum::<f32>();
        (0..self.n).map(|j| square(j).sqrt()).collect()
    }

    fn bytes(&self) -> Vec<u8> {
        self.weights.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    fn by_score(&self, norms: Option<&[f32]>, group: Group) -> Vec<f32> {
        let bytes = self.bytes();
        let pruned = score::prune(cpu(), Matrix::new(DType::F32, self.rows, self.n, &bytes), norms, group);
        pruned.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    fn by_sparsegpt(&self, cpu: &Cpu, group: Group) -> Vec<f32> {
        let bytes = self.bytes();
        sparsegpt::prune(cpu, Matrix::new(DType::F32, self.rows, self.n, &bytes), &self.factor(), group)
    }

    /// `‖X·Wᵀ − X·W'ᵀ‖²`.
    fn error(&self, pruned: &[f32]) -> f64 {
        let difference: Vec<f64> = self.weights.iter().zip(pruned).map(|(a, b)| f64::from(a - b)).collect();
        let of_row = |x: &[f32], w: &[f64]| x.iter().zip(w).map(|(&x, w)| f64::from(x) * w).sum::<f64>().powi(2);
        let token = |x: &[f32]| difference.chunks(self.n).map(|w| of_row(x, w)).sum::<f64>();
        self.inputs.chunks(self.n).map(token).sum()
    }
}

fn zeros(values: &[f32]) -> usize {
    values.iter().filter(|w| **w == 0.0).count()
}

#[test]
fn fractions_of_groups_are_rounded_down() {
    for (fraction, n, expected) in [(0.5, 7, 3), (0.29, 100, 29), (0.3, 10, 3), (0.7, 10, 7), (0.8, 1, 0), (0.2, 4, 0)]
    {
        assert_eq!(count(fraction, n), expected, "{fraction} of {n}");
    }
}

#[test]
fn the_smallest_are_found_and_of_equal_ones_the_first() {
    let scores = [3.0, 0.0, 1.0, 1.0, f32::MAX, 1.0, 0.5];
    for (count, expected) in [(0, &[][..]), (1, &[1]), (3, &[1, 2, 6]), (4, &[1, 2, 3, 6]), (7, &[0, 1, 2, 3, 4, 5, 6])]
    {
        let mut keys = Vec::new();
        let mut found = smallest(scores.into_iter(), count, &mut keys).to_vec();
        found.sort_unstable();
        assert_eq!(found, expected, "{count}");
    }
}

#[test]
fn magnitude_compares_a_matrix_and_wanda_a_row() {
    let layer = Layer { rows: 2, n: 4, weights: vec![1.0, -2.0, 3.0, 4.0, -0.1, 0.2, -0.3, 0.4], inputs: vec![] };
    let group = |f: fn(f64) -> Group| f(0.5);
    assert_eq!(layer.by_score(None, group(Group::Matrix)), [1.0, -2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
    let norms = [10.0, 1.0, 1.0, 0.0];
    assert_eq!(layer.by_score(Some(&norms), group(Group::Row)), [1.0, 0.0, 3.0, 0.0, -0.1, 0.0, -0.3, 0.0]);
    let pattern = Group::Pattern(Pattern { keep: 1, of: 2 });
    assert_eq!(layer.by_score(Some(&norms), pattern), [1.0, 0.0, 3.0, 0.0, -0.1, 0.0, -0.3, 0.0]);
}

#[test]
fn patterns_hold_exactly_and_weights_that_stay_are_untouched() {
    for (keep, of) in [(2, 4), (1, 4), (3, 4), (4, 8), (2, 3), (1, 2), (5, 12), (100, 132)] {
        let layer = Layer::random(5, 2 * 132, 40, 3);
        let group = Group::Pattern(Pattern { keep, of });
        let scored = layer.by_score(Some(&layer.norms()), group);
        assert!(scored.iter().zip(&layer.weights).all(|(a, b)| *a == 0.0 || a == b));
        for pruned in [scored, layer.by_sparsegpt(cpu(), group)] {
            assert!(pruned.chunks(of).all(|few| zeros(few) == of - keep), "{keep}:{of}");
        }
    }
}

/// One column after the other, each with the explicit inverse of what is left of the Hessian.
fn textbook(layer: &Layer, block: usize, fraction: f64) -> Vec<f64> {
    let (rows, n, hessian) = (layer.rows, layer.n, layer.hessian());
    let inverse = |j: usize| hessian.view_range(j.., j..).into_owned().try_inverse().unwrap();
    let inverses: Vec<DMatrix<f64>> = (0..n).map(inverse).collect();
    let mut w: Vec<f64> = layer.weights.iter().map(|&w| f64::from(w)).collect();
    for start in (0..n).step_by(block) {
        let columns = start..n.min(start + block);
        let mut losses: Vec<(f64, usize)> = Vec::new();
        for i in 0..rows {
            losses.extend(columns.clone().map(|j| (w[i * n + j].powi(2) / inverses[j][(0, 0)], i * n + j)));
        }
        losses.sort_by(|a, b| a.0.total_cmp(&b.0));
        let dropped: Vec<usize> =
            losses.iter().take(losses.len() * (fraction * 100.0) as usize / 100).map(|l| l.1).collect();
        for j in columns {
            for i in (0..rows).filter(|i| dropped.contains(&(i * n + j))) {
                let step = w[i * n + j] / inverses[j][(0, 0)];
                for k in j..n {
                    w[i * n + k] -= step * inverses[j][(k - j, 0)];
                }
                w[i * n + j] = 0.0;
            }
        }
    }
    w
}

#[test]
fn sparsegpt_is_the_textbook_update() {
    // Less than a block, a block, and two with an end.
    for n in [24, 128, 270] {
        let layer = Layer::random(6, n, 2 * n, n as u64);
        let (found, expected) = (layer.by_sparsegpt(cpu(), Group::Row(0.5)), textbook(&layer, 128, 0.5));
        let size = expected.iter().fold(0.0f64, |size, w| size.max(w.abs()));
        for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
            // Single precision throughout, and up to n updates of a weight.
            let tolerance = n as f64 * f64::from(f32::EPSILON) * 100.0 * size;
            assert!((f64::from(*a) - b).abs() < tolerance, "{n} inputs, weight {i}: {a}, expected {b}");
        }
    }
}

/// The weights of one row that stay, solved for at once.
fn solved(layer: &Layer, row: usize, kept: &[usize]) -> Vec<f64> {
    let (n, hessian) = (layer.n, layer.hessian());
    let weights = DMatrix::from_fn(n, 1, |j, _| f64::from(layer.weights[row * n + j]));
    let among = DMatrix::from_fn(kept.len(), kept.len(), |a, b| hessian[(kept[a], kept[b])]);
    let wanted = DMatrix::from_fn(kept.len(), 1, |a, _| (hessian.row(kept[a]) * &weights)[0]);
    among.lu().solve(&wanted).unwrap().iter().copied().collect()
}

#[test]
fn refitted_weights_are_the_best_beside_their_zeros() {
    for (rows, n) in [(3, 24), (37, 70)] {
        let layer = Layer::random(rows, n, 8 * n, n as u64);
        let products = layer.hessian().iter().map(|&v| v as f32).collect();
        let pruned = layer.by_sparsegpt(cpu(), Group::Row(0.5));
        let mut refitted = pruned.clone();
        refit::refit(cpu(), &layer.weights, &Hessian::new(products, n), &mut refitted);
        assert!(pruned.iter().zip(&refitted).all(|(a, b)| (*a == 0.0) == (*b == 0.0)));
        assert!(layer.error(&refitted) < layer.error(&pruned));
        for (row, found) in refitted.chunks(n).enumerate() {
            let kept: Vec<usize> = (0..n).filter(|&j| found[j] != 0.0).collect();
            let best = solved(&layer, row, &kept);
            // What a fixed number of steps leaves of the squared distance.
            let distance =
                |values: &[f32]| kept.iter().zip(&best).map(|(&j, b)| (f64::from(values[j]) - b).powi(2)).sum::<f64>();
            let before = distance(&pruned[row * n..][..n]);
            assert!(distance(found) <= 1e-3 * before + 1e-9, "{} of {before}", distance(found));
        }
    }
}

#[test]
fn sparsegpt_errs_less_than_wanda_and_wanda_less_than_magnitude() {
    for seed in 0..5 {
        let layer = Layer::random(48, 96, 400, seed);
        let magnitude = layer.error(&layer.by_score(None, Group::Matrix(0.5)));
        let wanda = layer.error(&layer.by_score(Some(&layer.norms()), Group::Row(0.5)));
        let sparsegpt = layer.error(&layer.by_sparsegpt(cpu(), Group::Row(0.5)));
        assert!(sparsegpt < wanda && wanda < magnitude, "{sparsegpt} {wanda} {magnitude}");
    }
}

#[test]
fn zeros_stay_and_count() {
    let mut layer = Layer::random(8, 64, 100, 1);
    layer.weights.iter_mut().step_by(4).for_each(|w| *w = 0.0);
    for fraction in [0.2, 0.5] {
        let expected = (fraction * 512.0f64).max(128.0) as usize;
        for pruned in [layer.by_score(None, Group::Matrix(fraction)), layer.by_sparsegpt(cpu(), Group::Row(fraction))] {
            assert!(pruned.iter().step_by(4).all(|w| *w == 0.0));
            assert_eq!(zeros(&pruned), expected, "{fraction}");
        }
    }
}

#[test]
fn weights_of_inputs_that_never_come_go_first() {
    let mut layer = Layer::random(8, 40, 100, 2);
    let dead = |i: &usize| i.is_multiple_of(5);
    layer.inputs.iter_mut().enumerate().filter(|(i, _)| dead(&(i % 40))).for_each(|(_, x)| *x = 0.0);
    let wanda = layer.by_score(Some(&layer.norms()), Group::Row(0.5));
    for pruned in [wanda, layer.by_sparsegpt(cpu(), Group::Row(0.5))] {
        assert!(pruned.iter().enumerate().all(|(i, w)| w.is_finite() && (!dead(&(i % 40)) || *w == 0.0)));
        assert_eq!(zeros(&pruned), 160);
    }
    // Where nothing comes at all, any choice will do.
    layer.inputs.fill(0.0);
    assert_eq!(zeros(&layer.by_score(Some(&layer.norms()), Group::Row(0.5))), 160);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let layer = Layer::random(70, 300, 90, 7);
    let alone = Cpu::new(Some(1));
    for group in [Group::Row(0.6), Group::Pattern(Pattern { keep: 2, of: 4 })] {
        assert_eq!(layer.by_sparsegpt(&alone, group), layer.by_sparsegpt(cpu(), group));
    }
}

#[test]
fn narrow_types_keep_the_bits_of_what_stays() {
    let layer = Layer::random(3, 32, 10, 4);
    for dtype in [DType::BF16, DType::F16] {
        let mut bytes = vec![0; dtype.row_bytes(96)];
        encode(dtype, &layer.weights, &mut bytes);
        let pruned = score::prune(cpu(), Matrix::new(dtype, 3, 32, &bytes), None, Group::Row(0.25));
        let pairs = || pruned.chunks(2).zip(bytes.chunks(2));
        assert_eq!(pairs().filter(|(a, _)| **a == [0, 0]).count(), 24, "{dtype}");
        assert!(pairs().all(|(a, b)| a == [0, 0] || a == b), "{dtype}");
    }
}
