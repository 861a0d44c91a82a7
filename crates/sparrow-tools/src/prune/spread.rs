//! How much is pruned of each matrix.

use sparrow::internals::backend::Observer;
use sparrow::internals::checkpoint::{Checkpoint, ModelFiles};
use sparrow::internals::run::{After, LayerStream};
use sparrow::{Cpu, Error, Model, Placement, Result};
use sparrow_kernels::decode;

use super::allocate::{Scored, by_worth, outlier_ratio, owl};
use super::options::{Allocation, PruneOptions};
use crate::calibrate::{InputSamples, Sample, TOKENS, Worth, column_norms};
use crate::layerwise::{Input, Kept, LayerInputs, LayerMatrix, Progress, Stage, dense};
use crate::text::Text;

/// Scores of a matrix that are kept to take quantiles of.
const SCORES: usize = 1 << 14;

/// The sparsity of each matrix of `chosen`.
///
/// # Errors
/// If activations are not finite, or weights cannot be read.
pub(super) fn allocate(
    cpu: &Cpu,
    (files, model): (&ModelFiles, &Model),
    (source, chosen): (&Checkpoint, &[Vec<LayerMatrix>]),
    options: &PruneOptions,
    text: &Text,
    progress: &mut Progress,
) -> Result<Vec<Vec<f64>>> {
    let target = options.target.sparsity();
    Ok(match options.allocation {
        Allocation::Uniform => chosen.iter().map(|matrices| vec![target; matrices.len()]).collect(),
        Allocation::Owl => {
            let mut ratios = Vec::new();
            observe(cpu, model, (source, chosen), text, (), progress, |_, matrices, norms| {
                let scored = matrices.iter().filter_map(|matrix| {
                    let norms = norms[matrix.input as usize].as_deref()?;
                    Some(matrix.weights(source).map(|stored| (stored, norms)))
                });
                let scored = scored.collect::<Result<Vec<_>>>()?;
                let scored: Vec<_> = scored.iter().map(|(stored, norms)| (stored.matrix(), *norms)).collect();
                let weights: usize = matrices.iter().map(|m| m.rows * m.cols).sum();
                ratios.push((outlier_ratio(cpu, &scored), weights as f64));
                Ok(())
            })?;
            let layers = owl(&ratios, target).into_iter().zip(chosen);
            layers.map(|(sparsity, matrices)| vec![sparsity; matrices.len()]).collect()
        }
        Allocation::Worth => {
            let samples = InputSamples::new(column_norms(cpu, model).into(), TOKENS - TOKENS % text.window.min(TOKENS));
            let mut scored: Vec<Scored> = Vec::new();
            let samples = observe(cpu, model, (source, chosen), text, samples, progress, |_, matrices, norms| {
                for matrix in matrices {
                    let norms = norms[matrix.input as usize].as_deref().expect("squares of its input were kept");
                    scored.push(sample(matrix, source, norms)?);
                }
                Ok(())
            })?;
            let not_finite = || Error::option("text", "the model's activations are not finite on this text");
            let calibration = samples.finish().ok_or_else(not_finite)?;
            // Inputs can be left out of matrices that have one in a row.
            let mut transposed = Model::read(files, Placement::default(), |_, _| ())?;
            transposed.weights_mut().make_input_major(&cpu.compute, |_, _| ())?;
            let measured = |done, all| progress(Stage::Weighing, done, all);
            let worth = Worth::measure(cpu, &transposed, &calibration, text.window.min(TOKENS), measured)?;
            let places = chosen.iter().enumerate().flat_map(|(l, matrices)| matrices.iter().map(move |m| (l, m.input)));
            for (scored, (layer, input)) in scored.iter_mut().zip(places) {
                scored.worth = worth.of_errors(layer, input as usize);
            }
            let mut found = by_worth(&scored, target).into_iter();
            chosen.iter().map(|matrices| found.by_ref().take(matrices.len()).collect()).collect()
        }
    })
}

/// Runs the model over the text, layer by layer, and calls `seen` with the norms of each layer's inputs.
fn observe<O: Observer>(
    cpu: &Cpu,
    model: &Model,
    (source, chosen): (&Checkpoint, &[Vec<LayerMatrix>]),
    text: &Text,
    mut observer: O,
    progress: &mut Progress,
    mut seen: impl FnMut(usize, &[LayerMatrix], [Option<Vec<f32>>; 4]) -> Result<()>,
) -> Result<O> {
    let (mut done, total) = (0, (chosen.len() * text.seen().len()) as u64);
    let mut stream = LayerStream::new(cpu, model, text.seen(), text.window)?;
    for (l, matrices) in chosen.iter().enumerate() {
        matrices.iter().try_for_each(|m| m.require_finite(source))?;
        let mut both = (observer, LayerInputs::new(cpu, &model.spec, l, Kept::Squares, matrices));
        stream.run(&dense(model, l, After::Advance), &mut both, |tokens, _| {
            done += tokens as u64;
            progress(Stage::Allocating, done, total);
        })?;
        model.weights.layers[l].release();
        let mut inputs = both.1;
        observer = both.0;
        let mut norms = Input::ALL.into_iter().map(|input| inputs.norms(input));
        let mut next = || norms.next().expect("there are four inputs");
        seen(l, matrices, [next()?, next()?, next()?, next()?])?;
    }
    Ok(observer)
}

/// Scores of some of a matrix's weights, |w| times the norm of what it is multiplied by.
fn sample(matrix: &LayerMatrix, source: &Checkpoint, norms: &[f32]) -> Result<Scored> {
    let (stored, mut row) = (matrix.weights(source)?, vec![0.0; matrix.cols]);
    let mut scores = Sample::new(SCORES);
    for r in 0..matrix.rows {
        decode(matrix.dtype, stored.matrix().row(r), &mut row);
        scores.extend(row.iter().zip(norms).map(|(w, norm)| w.abs() * norm));
    }
    Ok(Scored { scores: scores.sorted(), weights: (matrix.rows * matrix.cols) as f64, worth: 1.0 })
}
