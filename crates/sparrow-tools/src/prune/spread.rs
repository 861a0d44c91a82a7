//! How much is pruned of each layer.

use sparrow::internals::checkpoint::Checkpoint;
use sparrow::internals::run::{After, LayerStream};
use sparrow::{Cpu, Model, Result};

use super::allocate::{outlier_ratio, owl};
use super::options::{Allocation, PruneOptions};
use crate::layerwise::{Input, Kept, LayerInputs, LayerMatrix, Progress, Stage, dense};
use crate::text::Text;

/// The sparsity of each layer, whose matrices are `chosen`.
///
/// # Errors
/// If activations are not finite, or weights cannot be read.
pub(super) fn allocate(
    cpu: &Cpu,
    model: &Model,
    (source, chosen): (&Checkpoint, &[Vec<LayerMatrix>]),
    options: &PruneOptions,
    text: &Text,
    progress: &mut Progress,
) -> Result<Vec<f64>> {
    let (layers, target) = (chosen.len(), options.target.sparsity());
    if options.allocation == Allocation::Uniform {
        return Ok(vec![target; layers]);
    }
    let (mut done, total) = (0, (layers * text.seen().len()) as u64);
    let mut stream = LayerStream::new(cpu, model, text.seen(), text.window)?;
    let mut ratios = Vec::new();
    for (l, matrices) in chosen.iter().enumerate() {
        matrices.iter().try_for_each(|m| m.require_finite(source))?;
        let mut inputs = LayerInputs::new(cpu, &model.spec, l, Kept::Squares, matrices);
        stream.run(&dense(model, l, After::Advance), &mut inputs, |tokens, _| {
            done += tokens as u64;
            progress(Stage::Allocating, done, total);
        })?;
        model.weights.layers[l].release();
        let norms = Input::ALL.map(|input| inputs.norms(input));
        let norms = norms.into_iter().collect::<Result<Vec<_>>>()?;
        let scored = matrices.iter().filter_map(|matrix| {
            let norms = norms[matrix.input as usize].as_deref()?;
            Some(matrix.weights(source).map(|stored| (stored, norms)))
        });
        let scored = scored.collect::<Result<Vec<_>>>()?;
        let scored: Vec<_> = scored.iter().map(|(stored, norms)| (stored.matrix(), *norms)).collect();
        let weights: usize = matrices.iter().map(|m| m.rows * m.cols).sum();
        ratios.push((outlier_ratio(cpu, &scored), weights as f64));
    }
    Ok(owl(&ratios, target))
}
