//! Which matrices get eight bits instead of four: those whose rounding costs most for the bits that it saves.
//!
//! What it costs is measured: the matrices that read one input are rounded to four bits, alone in the model, and the KL divergence of
//! what the model then predicts is taken. What they cost alone stands for what they cost together. Matrices that share an input get the
//! same width, because engines that read the files compute them as one.

use sparrow::internals::checkpoint::Checkpoint;
use sparrow::internals::run::{After, LayerStream};
use sparrow::internals::tensor::{Tensor, Weight};
use sparrow::internals::weights::{LayerWeights, Linear};
use sparrow::{Cpu, DType, Error, Model, Result, Selector};
use sparrow_kernels::encode;

use super::grid::Grid;
use super::options::QuantizeOptions;
use super::round;
use crate::calibrate::{Rest, TOKENS, divergence};
use crate::layerwise::{Input, LayerMatrix, Progress, Stage, dense, layer_matrices};
use crate::text::Text;

/// Bits of a code.
const NARROW: u32 = 4;
const WIDE: u32 = 8;

/// # Errors
/// If no widths of the matrices take so many bits on average.
pub(super) fn check(chosen: &[Vec<LayerMatrix>], options: &QuantizeOptions, average: f64) -> Result<()> {
    let [least, most] = [NARROW, WIDE].map(|bits| total(chosen, bits, options) as f64 / weights(chosen));
    if (least..=most).contains(&average) {
        return Ok(());
    }
    // Inwards, so that what the message names is possible.
    let (least, most) = ((least * 100.0).ceil() / 100.0, (most * 100.0).floor() / 100.0);
    let message = format!("must be from {least:.2} to {most:.2} here, scales included, found {average}");
    Err(Error::option("average-bits", message))
}

/// The bits of every matrix of `chosen`, so that they take at most `average` per weight, scales included: as [checked](check).
///
/// # Errors
/// If weights cannot be read.
pub(super) fn allocate(
    cpu: &Cpu,
    model: &mut Model,
    (source, chosen): (&Checkpoint, &[Vec<LayerMatrix>]),
    (options, average): (&QuantizeOptions, f64),
    text: &Text,
    progress: &mut Progress,
) -> Result<Vec<Vec<u32>>> {
    let costs = measure(cpu, model, (source, chosen), options, text, progress)?;
    let mut sites = Vec::new();
    for (layer, (matrices, costs)) in chosen.iter().zip(costs).enumerate() {
        for (input, cost) in Input::ALL.into_iter().zip(costs) {
            let readers = || matrices.iter().filter(|matrix| matrix.input == input);
            let more = readers().map(|matrix| size(matrix, WIDE, options) - size(matrix, NARROW, options)).sum();
            sites.extend((more > 0).then_some(Site { layer, input, cost, more }));
        }
    }
    let spare = ((average * weights(chosen)) as usize).saturating_sub(total(chosen, NARROW, options));
    let widened = widened(sites, spare);
    let bits = |layer, matrix: &LayerMatrix| if widened.contains(&(layer, matrix.input)) { WIDE } else { NARROW };
    Ok(chosen.iter().enumerate().map(|(l, matrices)| matrices.iter().map(|m| bits(l, m)).collect()).collect())
}

fn weights(chosen: &[Vec<LayerMatrix>]) -> f64 {
    chosen.iter().flatten().map(|matrix| (matrix.rows * matrix.cols) as f64).sum()
}

/// Bits of all matrices at one width.
fn total(chosen: &[Vec<LayerMatrix>], bits: u32, options: &QuantizeOptions) -> usize {
    chosen.iter().flatten().map(|matrix| size(matrix, bits, options)).sum()
}

/// Bits of a matrix with its scales and zero points.
fn size(matrix: &LayerMatrix, bits: u32, options: &QuantizeOptions) -> usize {
    let of_scale = 16 + if bits == NARROW && options.zero_points { 4 } else { 0 };
    let grid = Grid::of(matrix, bits, options);
    matrix.rows * (matrix.cols * bits as usize + grid.groups(matrix.cols) * of_scale)
}

/// Matrices that read one input.
#[derive(Debug, Clone, Copy)]
struct Site {
    layer: usize,
    input: Input,
    /// KL divergence of four bits.
    cost: f64,
    /// Bits that eight take more.
    more: usize,
}

/// The sites that get eight bits with so many bits to spare: the dearest for their bits, as far as there is room.
fn widened(mut sites: Vec<Site>, mut spare: usize) -> Vec<(usize, Input)> {
    sites.sort_by(|a, b| (b.cost / b.more as f64).total_cmp(&(a.cost / a.more as f64)));
    sites.retain(|site| {
        let fits = site.more <= spare;
        spare -= if fits { site.more } else { 0 };
        fits
    });
    sites.into_iter().map(|site| (site.layer, site.input)).collect()
}

/// The KL divergence that four bits cost in each site, `[layers]` in the order of [`Input::ALL`].
fn measure(
    cpu: &Cpu,
    model: &mut Model,
    (source, chosen): (&Checkpoint, &[Vec<LayerMatrix>]),
    options: &QuantizeOptions,
    text: &Text,
    progress: &mut Progress,
) -> Result<Vec<[f64; 4]>> {
    let window = text.window.min(TOKENS);
    let tokens = &text.seen()[..text.seen().len().min(TOKENS - TOKENS % window)];
    let vocab = model.spec.vocab_size;
    let mut stream = LayerStream::new(cpu, model, tokens, window)?;
    let reference = Rest { cpu, model, window, layer: 0 }.run(stream.residual(), &Selector::dense(), &mut ())?;
    let all = (chosen.len() * Input::ALL.len()) as u64;
    let mut costs = vec![[0.0; 4]; chosen.len()];
    for (layer, matrices) in chosen.iter().enumerate() {
        for input in Input::ALL {
            progress(Stage::Weighing, (layer * Input::ALL.len() + input as usize) as u64, all);
            if matrices.iter().all(|matrix| matrix.input != input) {
                continue;
            }
            let rounded = rounded(cpu, model, (source, matrices), options, (layer, input))?;
            let originals = replace(&mut model.weights_mut().layers[layer], input, rounded);
            let found = Rest { cpu, model, window, layer }.run(stream.residual(), &Selector::dense(), &mut ())?;
            replace(&mut model.weights_mut().layers[layer], input, originals);
            costs[layer][input as usize] = divergence(cpu, vocab, &reference, &found);
        }
        stream.run(&dense(model, layer, After::Advance), &mut (), |_, _| ())?;
    }
    Ok(costs)
}

/// The projections of a site, of which those that are chosen are rounded to four bits, as numbers.
fn rounded(
    cpu: &Cpu,
    model: &mut Model,
    (source, chosen): (&Checkpoint, &[LayerMatrix]),
    options: &QuantizeOptions,
    (layer, input): (usize, Input),
) -> Result<Vec<Weight>> {
    // Projections that are stored as one matrix lie in it one below the other, as they do here.
    let mut values = Vec::new();
    let matrices = layer_matrices(&model.spec.names, source, layer);
    for matrix in matrices.iter().filter(|matrix| matrix.input == input) {
        let weights = matrix.values(source)?;
        let is_chosen = chosen.iter().any(|one| one.name == matrix.name);
        values.extend(match is_chosen {
            true => {
                let (grid, importance) = (Grid::of(matrix, NARROW, options), vec![1.0; matrix.cols]);
                round::to_nearest(cpu, &grid, weights, matrix.cols, &importance).values
            }
            false => weights,
        });
    }
    let mut values = values.as_slice();
    let projections = projections(&mut model.weights_mut().layers[layer], input);
    let tensors = projections.into_iter().map(|linear| {
        let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
        let (own, rest) = values.split_at(rows * cols);
        values = rest;
        Ok(Tensor::in_memory(DType::F32, rows, cols, |bytes| encode(DType::F32, own, bytes))?.into())
    });
    tensors.collect()
}

/// Sets the weights of a site and returns those before.
fn replace(layer: &mut LayerWeights, input: Input, weights: Vec<Weight>) -> Vec<Weight> {
    let projections = projections(layer, input).into_iter();
    projections.zip(weights).map(|(linear, weight)| std::mem::replace(&mut linear.weight, weight)).collect()
}

/// The projections that read an input.
fn projections(layer: &mut LayerWeights, input: Input) -> Vec<&mut Linear> {
    let LayerWeights { q, k, v, o, mlp, .. } = layer;
    match input {
        Input::Attention => vec![q, k, v],
        Input::Output => vec![o],
        Input::Mlp => mlp.gate.iter_mut().chain([&mut mlp.up]).collect(),
        Input::Down => vec![&mut mlp.down],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dearest_for_their_bits_are_widened_as_far_as_there_is_room() {
        let site = |layer, cost, more| Site { layer, input: Input::Down, cost, more };
        // Dearest per bit first: 2, 0, 3, 1; there is no room left for 0, but for what is smaller.
        let sites = vec![site(0, 3.0, 10), site(1, 1.0, 10), site(2, 4.0, 10), site(3, 0.4, 2)];
        assert_eq!(widened(sites.clone(), 13), [(2, Input::Down), (3, Input::Down)]);
        assert_eq!(widened(sites.clone(), 32).len(), 4);
        assert!(widened(sites, 1).is_empty());
    }
}
