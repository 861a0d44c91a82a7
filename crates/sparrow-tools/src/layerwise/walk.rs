//! The way through the layers: observe, change, write, go on with what has become of the layer.

use sparrow::internals::checkpoint::Checkpoint;
use sparrow::internals::record::Evaluation;
use sparrow::internals::run::{After, LOGIT_ROWS, LayerStream, Run};
use sparrow::internals::tensor::Tensor;
use sparrow::internals::weights::LayerWeights;
use sparrow::{Cpu, DType, Model, Result, Selector};
use sparrow_kernels::encode;

use super::inputs::{Kept, LayerInputs};
use super::matrices::LayerMatrix;
use super::quality::MeasuredQuality;
use super::shards::{Replaced, Shards};
use super::stage::{Progress, Stage};
use crate::eval::Comparison;
use crate::text::Text;

/// What is changed, and on what.
pub(crate) struct Walk<'a> {
    pub cpu: &'a Cpu,
    /// The matrices to change, by layer.
    pub chosen: &'a [Vec<LayerMatrix>],
    pub text: &'a Text,
    pub shards: &'a Shards<'a>,
    /// What is kept of their inputs.
    pub kept: Kept,
}

impl Walk<'_> {
    /// Has `change(layer, inputs)` say what becomes of each layer and writes it, unless it is there already; layers of `model` are
    /// replaced by what was written. Then writes the rest of the files, and returns what all that cost on the held-out text.
    ///
    /// # Errors
    /// If weights or activations are not finite, `change` says so, or files cannot be read or written.
    pub fn run(
        &self,
        model: &mut Model,
        progress: &mut Progress,
        mut change: impl FnMut(usize, &mut LayerInputs) -> Result<Replaced>,
    ) -> Result<MeasuredQuality> {
        let (cpu, window, shards) = (self.cpu, self.text.window, self.shards);
        let seen = if self.kept == Kept::Nothing { &[] } else { self.text.seen() };
        let held_out = self.text.held_out();
        let mut calibration = LayerStream::new(cpu, model, seen, window)?;
        let mut before = LayerStream::new(cpu, model, held_out, window)?;
        let mut after = LayerStream::new(cpu, model, held_out, window)?;
        let of_layer = 2 * (seen.len() + held_out.len());
        for (l, matrices) in self.chosen.iter().enumerate() {
            let mut done = l * of_layer;
            let total = (self.chosen.len() * of_layer) as u64;
            let mut tokens = |tokens: usize, _: &[f32]| {
                done += tokens;
                progress(Stage::Changing, done as u64, total);
            };
            let path = shards.path(l);
            if !path.exists() {
                matrices.iter().try_for_each(|m| m.require_finite(shards.source))?;
                let mut inputs = LayerInputs::new(cpu, &model.spec, l, self.kept, matrices);
                calibration.run(&dense(model, l, After::Stay), &mut inputs, &mut tokens)?;
                shards.write(l, &change(l, &mut inputs)?)?;
            }
            before.run(&dense(model, l, After::Advance), &mut (), &mut tokens)?;
            let mut changed = LayerWeights::load(&model.spec, &mut Checkpoint::open_file(&path)?, l)?;
            as_numbers(&mut changed)?;
            let original = std::mem::replace(&mut model.weights_mut().layers[l], changed);
            after.run(&dense(model, l, After::Advance), &mut (), &mut tokens)?;
            if l + 1 < self.chosen.len() {
                calibration.run(&dense(model, l, After::Advance), &mut (), &mut tokens)?;
            }
            // Nothing looks at a layer again: what was made in memory for the changed one is given up.
            std::mem::replace(&mut model.weights_mut().layers[l], original).release();
            model.weights.layers[l].release();
        }
        drop(calibration);
        let evaluation = compare(model, self.text, before, after, progress)?;
        shards.write_rest()?;
        Ok(MeasuredQuality { text: self.text.held_out_name(), evaluation })
    }
}

/// Decodes what is quantised of a layer: the measured quality and what later layers see is then that of the weights alone, whatever
/// kernels for them round, and a text is read several times as fast.
fn as_numbers(layer: &mut LayerWeights) -> Result<()> {
    let LayerWeights { q, k, v, o, mlp, .. } = layer;
    let linears = [q, k, v, o, &mut mlp.up, &mut mlp.down].into_iter().chain(&mut mlp.gate);
    for linear in linears.filter(|linear| linear.weight.dtype().is_quantized()) {
        let weight = &linear.weight;
        let (rows, cols) = (weight.rows(), weight.cols());
        let decoded = Tensor::in_memory(DType::F32, rows, cols, |out| {
            let mut row = vec![0.0; cols];
            for (i, bytes) in out.chunks_exact_mut(DType::F32.row_bytes(cols)).enumerate() {
                weight.decode(i..i + 1, &mut row);
                encode(DType::F32, &row, bytes);
            }
        })?;
        linear.weight = decoded.into();
    }
    Ok(())
}

/// A layer, all of it.
pub(crate) fn dense(model: &Model, layer: usize, after: After) -> Run<'_> {
    Run { model, layer, selector: &Selector::Dense, after }
}

/// What the streams before and after the change predict of the held-out text.
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
            let [dense, changed] = &mut logits;
            before.logits(model, range.clone(), &mut dense[..range.len() * vocab])?;
            after.logits(model, range.clone(), &mut changed[..range.len() * vocab])?;
            for (i, (dense, changed)) in range.zip(dense.chunks(vocab).zip(changed.chunks(vocab))) {
                comparison.add(dense, changed, ids[i + 1]);
            }
        }
        progress(Stage::Evaluating, (first + window.len()) as u64, ids.len() as u64);
    }
    Ok(comparison.finish(vec![1.0; model.spec.num_layers]))
}
