//! The way through the layers: observe, prune, write, go on with what is left of the layer.

use sparrow::internals::checkpoint::Checkpoint;
use sparrow::internals::record::Evaluation;
use sparrow::internals::run::{After, LOGIT_ROWS, LayerStream, Run};
use sparrow::internals::weights::LayerWeights;
use sparrow::{Cpu, Model, Result, Selector};

use super::allocate::{outlier_ratio, owl};
use super::inputs::{LayerInputs, Statistics};
use super::layer;
use super::options::{Allocation, Method, PruneOptions};
use super::stage::{Progress, Stage};
use super::tensors::{Input, Prunable};
use super::write::Shards;
use crate::eval::Comparison;
use crate::text::Text;

/// What is pruned, and on what.
pub(super) struct Pass<'a> {
    pub cpu: &'a Cpu,
    pub source: &'a Checkpoint,
    /// The matrices to prune, by layer.
    pub chosen: &'a [Vec<Prunable>],
    pub options: &'a PruneOptions,
    pub text: &'a Text,
}

impl Pass<'_> {
    /// The sparsity of each layer.
    ///
    /// # Errors
    /// If activations are not finite, or weights cannot be read.
    pub fn allocate(&self, model: &Model, progress: &mut Progress) -> Result<Vec<f64>> {
        let (layers, target) = (self.chosen.len(), self.options.target.sparsity());
        if self.options.allocation == Allocation::Uniform {
            return Ok(vec![target; layers]);
        }
        let seen = self.text.seen();
        let (mut done, total) = (0, (layers * seen.len()) as u64);
        let mut stream = LayerStream::new(self.cpu, model, seen, self.text.window)?;
        let mut ratios = Vec::new();
        for (l, matrices) in self.chosen.iter().enumerate() {
            matrices.iter().try_for_each(|m| m.require_finite(self.source))?;
            let mut inputs = LayerInputs::new(self.cpu, &model.spec, Method::Wanda, matrices);
            stream.run(&dense(model, l, After::Advance), &mut inputs, |tokens, _| {
                done += tokens as u64;
                progress(Stage::Allocating, done, total);
            })?;
            model.weights.layers[l].release();
            let norms = Input::ALL.map(|input| inputs.take(input, l));
            let norms = norms.into_iter().collect::<Result<Vec<_>>>()?;
            let scored = matrices.iter().filter_map(|matrix| match &norms[matrix.input as usize] {
                Some(Statistics::Norms(norms)) => {
                    Some(matrix.weights(self.source).map(|stored| (stored, norms.as_slice())))
                }
                _ => None,
            });
            let scored = scored.collect::<Result<Vec<_>>>()?;
            let scored: Vec<_> = scored.iter().map(|(stored, norms)| (stored.matrix(), *norms)).collect();
            let weights: usize = matrices.iter().map(|m| m.rows * m.cols).sum();
            ratios.push((outlier_ratio(self.cpu, &scored), weights as f64));
        }
        Ok(owl(&ratios, target))
    }

    /// Prunes each layer to its sparsity of `targets` and writes it, unless it is there already; layers of `model` are replaced by
    /// what was written. Returns what it cost on the held-out text.
    ///
    /// # Errors
    /// If weights or activations are not finite, or files cannot be read or written.
    pub fn prune(
        &self,
        model: &mut Model,
        shards: &Shards,
        targets: &[f64],
        progress: &mut Progress,
    ) -> Result<Evaluation> {
        let (cpu, window, options) = (self.cpu, self.text.window, self.options);
        let calibrates = options.method != Method::Magnitude;
        let seen = if calibrates { self.text.seen() } else { &[] };
        let held_out = self.text.held_out();
        let mut calibration = LayerStream::new(cpu, model, seen, window)?;
        let mut before = LayerStream::new(cpu, model, held_out, window)?;
        let mut after = LayerStream::new(cpu, model, held_out, window)?;
        let of_layer = 2 * (seen.len() + held_out.len());
        for (l, matrices) in self.chosen.iter().enumerate() {
            let mut done = l * of_layer;
            let total = (targets.len() * of_layer) as u64;
            let mut tokens = |tokens: usize, _: &[f32]| {
                done += tokens;
                progress(Stage::Pruning, done as u64, total);
            };
            let path = shards.path(l);
            if !path.exists() {
                matrices.iter().try_for_each(|m| m.require_finite(self.source))?;
                let mut inputs = LayerInputs::new(cpu, &model.spec, options.method, matrices);
                calibration.run(&dense(model, l, After::Stay), &mut inputs, &mut tokens)?;
                let rule = (options.method, options.target);
                let pruned = layer::prune(cpu, self.source, l, matrices, &mut inputs, rule, targets[l])?;
                shards.write(l, &pruned)?;
            }
            before.run(&dense(model, l, After::Advance), &mut (), &mut tokens)?;
            let pruned = LayerWeights::load(&model.spec, &mut Checkpoint::open_file(&path)?, l)?;
            std::mem::replace(&mut model.weights_mut().layers[l], pruned).release();
            after.run(&dense(model, l, After::Advance), &mut (), &mut tokens)?;
            if l + 1 < targets.len() {
                calibration.run(&dense(model, l, After::Advance), &mut (), &mut tokens)?;
            }
            model.weights.layers[l].release();
        }
        drop(calibration);
        compare(model, self.text, before, after, progress)
    }
}

/// A layer, all of it.
fn dense(model: &Model, layer: usize, after: After) -> Run<'_> {
    Run { model, layer, selector: &Selector::Dense, after }
}

/// What the streams before and after pruning predict of the held-out text.
fn compare(
    model: &Model,
    text: &Text,
    mut before: LayerStream<Cpu>,
    mut after: LayerStream<Cpu>,
    progress: &mut Progress,
) -> Result<Evaluation> {
    let (ids, vocab) = (text.held_out(), model.spec.vocab_size);
    let mut comparison = Comparison::default();
    let mut logits = [(); 2].map(|()| vec![0.0; LOGIT_ROWS * vocab]);
    for (w, window) in ids.chunks(text.window).enumerate() {
        let first = w * text.window;
        // The last token of a window predicts nothing.
        for start in (first..first + window.len() - 1).step_by(LOGIT_ROWS) {
            let range = start..(start + LOGIT_ROWS).min(first + window.len() - 1);
            let [dense, pruned] = &mut logits;
            before.logits(model, range.clone(), &mut dense[..range.len() * vocab])?;
            after.logits(model, range.clone(), &mut pruned[..range.len() * vocab])?;
            for (i, (dense, pruned)) in range.zip(dense.chunks(vocab).zip(pruned.chunks(vocab))) {
                comparison.add(dense, pruned, ids[i + 1]);
            }
        }
        progress(Stage::Evaluating, (first + window.len()) as u64, ids.len() as u64);
    }
    Ok(comparison.finish(vec![1.0; model.spec.num_layers]))
}
