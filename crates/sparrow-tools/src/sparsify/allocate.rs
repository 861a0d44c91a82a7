//! How much of each projection's input a layer can do without: greedy, by the error of the layer's output (TEAL,
//! arXiv 2408.14690, algorithm 1).

use sparrow::internals::backend::{Projection, Threshold};
use sparrow::internals::run::{After, LayerStream, Run};
use sparrow::internals::select::InputThresholds;
use sparrow::internals::weights::LayerWeights;
use sparrow::{Cpu, Error, Model, Result, Selector};
use sparrow_kernels::DType;

use crate::calibrate::InputCalibration;

/// Tokens that a layer is run on.
pub(super) const TOKENS: usize = 128;

/// Sparsity of the whole layer that one step adds.
const STEP: f64 = 0.05;

/// Steps: up to 95 %.
const STEPS: usize = 19;

/// The sparsity of each projection after each step; entry 0 is dense.
pub(super) struct Path(Vec<[f64; 7]>);

impl Path {
    /// For a sparsity of the whole layer: between steps, interpolated.
    pub fn at(&self, sparsity: f64) -> [f64; 7] {
        let position = (sparsity / STEP).clamp(0.0, (self.0.len() - 1) as f64);
        let (from, part) = (position.floor() as usize, position.fract());
        let (a, b) = (self.0[from], self.0[(from + 1).min(self.0.len() - 1)]);
        std::array::from_fn(|i| a[i] + (b[i] - a[i]) * part)
    }
}

/// From dense on, each step takes inputs from the projection where that changes the layer's output least.
///
/// # Errors
/// If weights cannot be read.
pub(super) fn path(cpu: &Cpu, model: &Model, layer: usize, calibration: &InputCalibration) -> Result<Path> {
    let x = &calibration.residual[layer];
    let mut stream = LayerStream::from_residual(cpu, model, x, DType::F32)?;
    let mut after = |selector: &Selector| {
        let mut out = Vec::with_capacity(x.len());
        let run = Run { model, layer, selector, after: After::Stay };
        stream.run(&run, &mut (), |_, x| out.extend_from_slice(x))?;
        Ok::<_, Error>(out)
    };
    let dense = after(&Selector::dense())?;
    let sizes = sizes(&model.weights.layers[layer]);
    let all: f64 = sizes.iter().sum();
    let mut path = vec![[0.0; 7]];
    for _ in 0..STEPS {
        let now = *path.last().expect("starts dense");
        let mut best: Option<(f64, [f64; 7])> = None;
        for (i, size) in sizes.iter().enumerate().filter(|(_, size)| **size > 0.0) {
            let mut next = now;
            next[i] += STEP * all / size;
            if next[i] > 1.0 {
                continue;
            }
            let thresholds =
                Projection::ALL.map(|p| Threshold::Fixed(calibration.threshold(layer, p, next[p as usize])));
            let selector = Selector::input(InputThresholds(vec![thresholds; model.spec.num_layers]));
            let error = after(&selector)?.iter().zip(&dense).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            if best.is_none_or(|(least, _)| error < least) {
                best = Some((error, next));
            }
        }
        // A step may be more than any projection has left: then what is left of all goes evenly.
        let even = || now.map(|s| s + STEP * (1.0 - s) / (1.0 - STEP * (path.len() - 1) as f64).max(STEP));
        let next = best.map_or_else(even, |(_, next)| next);
        path.push(next.map(|s| s.min(1.0)));
    }
    Ok(Path(path))
}

/// Weights of each projection, by [`Projection`].
fn sizes(layer: &LayerWeights) -> [f64; 7] {
    let mlp = &layer.mlp;
    [Some(&layer.q), Some(&layer.k), Some(&layer.v), Some(&layer.o), mlp.gate.as_ref(), Some(&mlp.up), Some(&mlp.down)]
        .map(|linear| linear.map_or(0.0, |l| (l.weight.rows() * l.weight.cols()) as f64))
}
