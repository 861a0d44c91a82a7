use std::sync::OnceLock;

use nalgebra::DMatrix;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sparrow::Cpu;
use sparrow_kernels::DType;

use super::grid::{Grid, Scale};
use super::layer::Feedback;
use super::options::Along;
use super::round::Rounded;
use super::{refine, round};
use crate::layerwise::Hessian;

fn cpu() -> &'static Cpu {
    static CPU: OnceLock<Cpu> = OnceLock::new();
    CPU.get_or_init(|| Cpu::new(Some(3)))
}

fn grid(bits: u32, group: usize, zero_points: bool) -> Grid {
    Grid { bits, group, along: Along::Input, zero_points, stored: DType::F16 }
}

/// A layer and the inputs it sees: correlated, and some much larger than others.
struct Layer {
    n: usize,
    /// `[rows, n]`.
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
        Layer { n, weights, inputs: inputs.collect() }
    }

    fn products(&self) -> DMatrix<f64> {
        let tokens = self.inputs.len() / self.n;
        let x = DMatrix::from_row_iterator(tokens, self.n, self.inputs.iter().map(|&v| f64::from(v)));
        x.transpose() * x
    }

    fn hessian(&self) -> Hessian {
        let products = self.products();
        Hessian::new((0..self.n * self.n).map(|i| products[i] as f32).collect(), self.n)
    }

    fn importance(&self) -> Vec<f32> {
        self.hessian().damped().diagonal()
    }

    fn to_nearest(&self, grid: &Grid) -> Vec<f32> {
        round::to_nearest(cpu(), grid, self.weights.clone(), self.n, &self.importance()).values
    }

    fn by_gptq(&self, cpu: &Cpu, grid: &Grid) -> Rounded {
        let Feedback { importance, order, factor, .. } = Feedback::new(self.hessian(), 0).unwrap();
        round::with_feedback(cpu, grid, &self.weights, &importance, (&order, &factor))
    }

    fn refined(&self, cpu: &Cpu, grid: &Grid) -> Rounded {
        let mut rounded = self.by_gptq(cpu, grid);
        refine::refine(cpu, grid, &self.weights, &self.hessian().damped(), &mut rounded);
        rounded
    }

    /// `‖X·Wᵀ − X·W'ᵀ‖²`.
    fn error(&self, rounded: &[f32]) -> f64 {
        let difference: Vec<f64> = self.weights.iter().zip(rounded).map(|(a, b)| f64::from(a - b)).collect();
        let of_row = |x: &[f32], w: &[f64]| x.iter().zip(w).map(|(&x, w)| f64::from(x) * w).sum::<f64>().powi(2);
        let token = |x: &[f32]| difference.chunks(self.n).map(|w| of_row(x, w)).sum::<f64>();
        self.inputs.chunks(self.n).map(token).sum()
    }
}

/// One column after the other, the most important first, each with the explicit inverse of what is left of the Hessian.
fn textbook(layer: &Layer, grid: &Grid) -> Vec<f64> {
    let n = layer.n;
    let scales = round::scales(cpu(), grid, &layer.weights, n, &layer.importance());
    let products = layer.products();
    let damping = 0.01 * products.diagonal().mean();
    let hessian = products + DMatrix::identity(n, n) * damping;
    let mut left: Vec<usize> = (0..n).collect();
    left.sort_by(|&a, &b| hessian[(b, b)].total_cmp(&hessian[(a, a)]));
    let mut w: Vec<f64> = layer.weights.iter().map(|&w| f64::from(w)).collect();
    while let Some(&j) = left.first() {
        let inverse = hessian.select_rows(&left).select_columns(&left).try_inverse().unwrap();
        for (r, row) in w.chunks_exact_mut(n).enumerate() {
            let Scale { scale, zero } = scales[grid.scale_at(r, j, n)];
            let (low, high) = grid.codes();
            let code = (row[j] / f64::from(scale) + f64::from(zero)).round_ties_even();
            let to = (code.clamp(low.into(), high.into()) - f64::from(zero)) * f64::from(scale);
            let step = (row[j] - to) / inverse[(0, 0)];
            left.iter().enumerate().for_each(|(at, &k)| row[k] -= step * inverse[(at, 0)]);
            row[j] = to;
        }
        left.remove(0);
    }
    w
}

#[test]
fn gptq_is_the_textbook_update() {
    // Less than a block of columns, a block, and two with an end.
    for (n, group, along, zero_points) in [
        (24, 8, Along::Input, false),
        (128, 32, Along::Input, true),
        (192, 32, Along::Input, false),
        (192, 64, Along::Input, true),
        (24, 3, Along::Output, false),
        (192, 2, Along::Output, true),
    ] {
        let layer = Layer::random(6, n, 2 * n, n as u64);
        let grid = Grid { along, ..grid(4, group, zero_points) };
        let (found, expected) = (layer.by_gptq(cpu(), &grid).values, textbook(&layer, &grid));
        for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
            // A code that is another is a step away, some tenth.
            assert!((f64::from(*a) - b).abs() < 1e-5, "{n} inputs, weight {i}: {a}, expected {b}");
        }
    }
}

#[test]
fn gptq_errs_less_than_the_nearest_and_that_less_than_a_range_of_its_own() {
    for seed in 0..3 {
        let layer = Layer::random(32, 128, 400, seed);
        for grid in [grid(4, 32, false), grid(4, 64, true), grid(4, 128, false), grid(8, 128, false)] {
            let (low, _) = grid.codes();
            let whole = |group: &[f32]| {
                let scale = group.iter().fold(0.0f32, |most, w| most.max(w.abs())) / -low;
                group.iter().map(|&w| grid.round(w, Scale { scale, zero: 0.0 })).collect::<Vec<_>>()
            };
            let range: Vec<f32> = layer.weights.chunks(grid.group).flat_map(whole).collect();
            let [gptq, refined] = [layer.by_gptq(cpu(), &grid), layer.refined(cpu(), &grid)];
            let [range, nearest, gptq, refined] =
                [range, layer.to_nearest(&grid), gptq.values, refined.values].map(|w| layer.error(&w));
            assert!(refined < gptq, "{grid:?}: {refined} {gptq}");
            // At 8 bits the range is as good a scale as any that is searched for.
            assert!(gptq < 0.7 * nearest && nearest < 1.1 * range, "{grid:?}: {gptq} {nearest} {range}");
        }
    }
}

/// Every scale and then every code set to the best beside all others, four times, the gradients calculated anew each time.
fn descent(layer: &Layer, grid: &Grid, mut rounded: Rounded) -> Vec<f32> {
    let n = layer.n;
    let hessian = layer.hessian().damped();
    let hessian = DMatrix::from_fn(n, n, |i, j| f64::from(hessian.row(i)[j]));
    let gradient = |values: &[f32], r: usize, j: usize| {
        let off = |k: usize| f64::from(layer.weights[r * n + k]) - f64::from(values[r * n + k]);
        (0..n).map(|k| hessian[(j, k)] * off(k)).sum::<f64>()
    };
    let rows = layer.weights.len() / n;
    let unit = if grid.along == Along::Input { (1, grid.group) } else { (grid.group, 1) };
    for _ in 0..4 {
        for first in (0..n).step_by(unit.1) {
            for top in (0..rows).step_by(unit.0) {
                let at = grid.scale_at(top, first, n);
                let of = rounded.scales[at];
                let columns = first..n.min(first + unit.1);
                let together = top..rows.min(top + unit.0);
                let code = |r: usize, j: usize| grid.code(rounded.values[r * n + j], of) - of.zero;
                let (mut slope, mut curvature) = (0.0, 0.0);
                for (r, j) in together.clone().flat_map(|r| columns.clone().map(move |j| (r, j))) {
                    slope += f64::from(code(r, j)) * gradient(&rounded.values, r, j);
                    let products = columns.clone().map(|k| hessian[(j, k)] * f64::from(code(r, k)));
                    curvature += f64::from(code(r, j)) * products.sum::<f64>();
                }
                let scale = grid.stored((f64::from(of.scale) + slope / curvature) as f32);
                let step = f64::from(scale - of.scale);
                if step * (step * curvature - 2.0 * slope) < 0.0 {
                    let codes: Vec<_> = together.flat_map(|r| columns.clone().map(move |j| (r, j))).collect();
                    let values: Vec<f32> = codes.iter().map(|&(r, j)| code(r, j) * scale).collect();
                    codes.iter().zip(values).for_each(|(&(r, j), value)| rounded.values[r * n + j] = value);
                    rounded.scales[at].scale = scale;
                }
            }
        }
        for (j, r) in (0..n).flat_map(|j| (0..rows).map(move |r| (j, r))) {
            let (slope, before) = (gradient(&rounded.values, r, j), rounded.values[r * n + j]);
            let wanted = f64::from(before) + slope / hessian[(j, j)];
            let value = grid.round(wanted as f32, rounded.scales[grid.scale_at(r, j, n)]);
            let step = f64::from(value - before);
            if step * (step * hessian[(j, j)] - 2.0 * slope) < 0.0 {
                rounded.values[r * n + j] = value;
            }
        }
    }
    rounded.values
}

#[test]
fn refining_is_descent_in_one_coordinate_after_the_other() {
    // Less than a block of columns, several with an end, groups that are wider than a block or do not divide it, and several tasks.
    for (rows, n, bits, group, along, zero_points) in [
        (6, 24, 4, 8, Along::Input, false),
        (70, 24, 4, 8, Along::Input, true),
        (6, 200, 4, 32, Along::Input, true),
        (2, 300, 4, 48, Along::Input, false),
        (2, 400, 8, 200, Along::Input, false),
        (6, 24, 4, 3, Along::Output, false),
        (6, 200, 4, 2, Along::Output, true),
    ] {
        let layer = Layer::random(rows, n, 2 * n, n as u64);
        let grid = Grid { along, ..grid(bits, group, zero_points) };
        let Rounded { values: found, scales } = layer.refined(cpu(), &grid);
        let expected = descent(&layer, &grid, layer.by_gptq(cpu(), &grid));
        // Another code is a step away; a scale may be stored as its neighbour.
        let step = |i: usize| scales[grid.scale_at(i / n, i % n, n)].scale.abs();
        let other = (0..found.len()).filter(|&i| (found[i] - expected[i]).abs() > 0.3 * step(i)).count();
        assert!(other <= found.len() / 50, "{grid:?}: {other} of {} values differ", found.len());
        let [found, expected, before] =
            [found, expected, layer.by_gptq(cpu(), &grid).values].map(|values| layer.error(&values));
        assert!((found - expected).abs() < 0.01 * (before - expected), "{grid:?}: {found} {expected} {before}");
    }
}

#[test]
fn gptq_errs_less_than_the_nearest_along_outputs() {
    for seed in 0..3 {
        let layer = Layer::random(64, 128, 400, seed);
        for grid in [grid(4, 32, false), grid(4, 64, true)].map(|grid| Grid { along: Along::Output, ..grid }) {
            let [gptq, refined] = [layer.by_gptq(cpu(), &grid), layer.refined(cpu(), &grid)];
            let [nearest, gptq, refined] =
                [layer.to_nearest(&grid), gptq.values, refined.values].map(|w| layer.error(&w));
            assert!(refined < gptq && gptq < 0.7 * nearest, "{grid:?}: {refined} {gptq} {nearest}");
        }
    }
}

#[test]
fn transposed_weights_keep_their_scales() {
    let (rows, n) = (8, 12);
    let layer = Layer::random(rows, n, 30, 5);
    let [grid, other] = [Along::Output, Along::Input].map(|along| Grid { along, ..grid(4, 4, true) });
    let rounded = layer.refined(cpu(), &grid);
    let transposed = rounded.transposed(n);
    for (r, j) in (0..rows).flat_map(|r| (0..n).map(move |j| (r, j))) {
        assert_eq!(transposed.values[j * rows + r], rounded.values[r * n + j]);
        assert_eq!(transposed.scales[other.scale_at(j, r, rows)], rounded.scales[grid.scale_at(r, j, n)]);
    }
}

#[test]
fn groups_are_fitted_better_than_by_any_range_of_a_fine_grid() {
    let layer = Layer::random(40, 32, 1, 9);
    let importance: Vec<f32> = (0..32).map(|j| 0.5 + (j % 5) as f32).collect();
    for grid in [grid(4, 32, false), grid(4, 32, true)] {
        let (low, high) = grid.codes();
        for weights in layer.weights.chunks(32) {
            let error = |of: Scale| -> f32 {
                let off = weights.iter().map(|&w| w - grid.round(w, of));
                off.zip(&importance).map(|(off, importance)| importance * off * off).sum()
            };
            let zeros: Vec<f32> =
                if grid.zero_points { (low as i32..=high as i32).map(|z| z as f32).collect() } else { vec![0.0] };
            let all = zeros.iter().flat_map(|&zero| (1..400).map(move |i| (i as f32 * 0.0005, zero)));
            let best = all.flat_map(|(s, zero)| [s, -s].map(|scale| error(Scale { scale, zero })));
            let best = best.fold(f32::INFINITY, f32::min);
            let found = error(grid.fit(weights, &importance));
            assert!(found < 1.1 * best, "{grid:?}: {found}, the best is {best}");
        }
    }
}

#[test]
fn scales_are_what_files_and_readers_hold() {
    for scales in [DType::F16, DType::BF16] {
        for zero_points in [false, true] {
            let grid = Grid { stored: scales, ..grid(4, 4, zero_points) };
            for size in [0.0, 1e-30, 1e-7, 1e-4, 0.3, 5e4, 1e30] {
                let weights = [0.1, -1.0, 0.5, 0.7].map(|w| w * size);
                let of = grid.fit(&weights, &[1.0, 0.0, 2.0, 1.0]);
                let stored = half::f16::from_f32(of.scale).to_f32();
                assert_eq!(stored, of.scale, "{size}");
                if scales == DType::BF16 {
                    assert_eq!(half::bf16::from_f32(of.scale).to_f32(), of.scale, "{size}");
                }
                for w in weights {
                    let value = grid.round(w, of);
                    assert!(value.is_finite(), "{size}");
                    assert_eq!(grid.round(value, of), value, "{size}: a value that it can have is kept");
                }
            }
        }
    }
}

#[test]
fn inputs_that_never_come_do_no_harm() {
    let mut layer = Layer::random(8, 64, 100, 2);
    layer.inputs.iter_mut().step_by(4).for_each(|x| *x = 0.0);
    let some = layer.refined(cpu(), &grid(4, 32, true));
    layer.inputs.fill(0.0);
    for rounded in [some, layer.refined(cpu(), &grid(4, 32, true))] {
        let off = rounded.values.iter().zip(&layer.weights).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 0.5, "{off}");
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let layer = Layer::random(70, 300, 90, 7);
    let alone = Cpu::new(Some(1));
    for grid in [grid(4, 100, false), Grid { along: Along::Output, ..grid(4, 10, false) }] {
        assert_eq!(layer.refined(&alone, &grid), layer.refined(cpu(), &grid));
    }
}

/// The descent goes on from where its own bookkeeping of the error says it is: no step leads uphill, and codes stay codes.
#[test]
fn refining_keeps_what_files_hold() {
    let layer = Layer::random(24, 96, 300, 11);
    for grid in [
        grid(4, 32, false),
        grid(4, 32, true),
        Grid { stored: DType::BF16, ..grid(4, 96, false) },
        Grid { along: Along::Output, ..grid(4, 8, true) },
    ] {
        let refined = layer.refined(cpu(), &grid);
        refined.scales.iter().for_each(|of| assert_eq!(grid.stored(of.scale), of.scale));
        for (i, &value) in refined.values.iter().enumerate() {
            assert_eq!(grid.round(value, refined.scales[grid.scale_at(i / 96, i % 96, 96)]), value);
        }
    }
}
