//! What is known of the neurons of a layer beside their gates: what each is expected to bring, and what stands for it where it is left
//! out.

use sparrow::internals::weights::MlpWeights;
use sparrow::{Cpu, Model};
use sparrow_kernels::Activation;

use super::gates::Gates;
use super::inputs::norms_of;
use super::neurons::LayerSamples;

/// Sampled tokens that it is taken from.
const TOKENS: usize = 1024;
/// Tokens computed together.
const CHUNK: usize = 256;

/// Activated gates of a layer's neurons, and their other factor, 1 without a gate, `[m, intermediate]` each, of chunks of sampled tokens.
fn each_chunk(cpu: &Cpu, model: &Model, layer: usize, samples: &LayerSamples, mut see: impl FnMut(&[f32], &[f32])) {
    let MlpWeights { gate, up, .. } = &model.weights.layers[layer].mlp;
    let deciding = gate.as_ref().unwrap_or(up);
    let (hidden, activation) = (deciding.inputs(), model.spec.activation);
    debug_assert!(activation != Activation::DoubleRelu, "its zeros need no weights");
    let gates = Gates::new(cpu, activation);
    let chosen: Vec<usize> = (0..samples.rows()).step_by(samples.rows().div_ceil(TOKENS).max(1)).collect();
    let (mut values, mut others) = (Vec::new(), Vec::new());
    for chosen in chosen.chunks(CHUNK) {
        let rows = chosen.iter().flat_map(|r| &samples.inputs[r * hidden..(r + 1) * hidden]);
        let (h, m) = (rows.copied().collect::<Vec<f32>>(), chosen.len());
        gates.activated(deciding, &h, m, &mut values);
        others.clear();
        others.resize(values.len(), 1.0);
        if gate.is_some() {
            cpu.linear(&h, m, [(up.view(), &mut others)]);
        }
        see(&values, &others);
    }
}

/// What `|act(gate)|` is multiplied with: the mean of `|up|` times the norm of the neuron's outputs (CHESS, arXiv 2409.01366).
pub(crate) fn expected_worth(cpu: &Cpu, model: &Model, layer: usize, samples: &LayerSamples) -> Vec<f32> {
    let norms = norms_of([&model.weights.layers[layer].mlp.down]);
    let (mut sums, mut tokens) = (vec![0.0; norms.len()], 0);
    each_chunk(cpu, model, layer, samples, |_, others| {
        for row in others.chunks_exact(norms.len()) {
            sums.iter_mut().zip(row).for_each(|(sum, up)| *sum += f64::from(up.abs()));
            tokens += 1;
        }
    });
    let tokens = f64::from(tokens.max(1));
    norms.iter().zip(sums).map(|(&norm, sum)| (f64::from(norm) * sum / tokens) as f32).collect()
}

/// The mean of each neuron over tokens that leave it out, because `|act(gate)|` times its weight is not above `threshold`; 0 where none
/// does.
pub(crate) fn means_left_out(
    cpu: &Cpu,
    model: &Model,
    layer: usize,
    samples: &LayerSamples,
    weights: &[f32],
    threshold: f32,
) -> Vec<f32> {
    let mut sums = vec![(0.0, 0u32); weights.len()];
    each_chunk(cpu, model, layer, samples, |gates, others| {
        let rows = gates.chunks_exact(weights.len()).zip(others.chunks_exact(weights.len()));
        for (gates, others) in rows {
            for (((gate, other), weight), (sum, count)) in gates.iter().zip(others).zip(weights).zip(&mut sums) {
                if (gate * weight).abs() <= threshold {
                    *sum += f64::from(gate * other);
                    *count += 1;
                }
            }
        }
    });
    sums.into_iter().map(|(sum, count)| (sum / f64::from(count.max(1))) as f32).collect()
}
