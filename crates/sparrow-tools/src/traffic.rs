//! What decoding reads: the bound of its speed, and what quality is to be compared against.

use sparrow::internals::backend::{DENSE_FROM, Scorer};
use sparrow::{Model, Selector};

/// Bytes of weights that a decoded token reads, selecting included: of every layer what is active of it, and the head.
/// `active` is each layer's [active fraction](sparrow::internals::backend::Stats::active_fraction_per_layer). With inputs left out
/// of matrices of several types it is right within a per cent.
///
/// # Panics
/// If `active` does not have a fraction per layer.
pub fn weight_bytes_per_token(model: &Model, selector: &Selector, active: &[f64]) -> f64 {
    let weights = &model.weights;
    assert_eq!(active.len(), weights.layers.len(), "a fraction per layer");
    let layer = |(index, &active): (usize, &f64)| {
        let layer = &weights.layers[index];
        let (attention, mlp) = (layer.attention_bytes() as f64, layer.mlp.bytes() as f64);
        match selector {
            Selector::Dense => attention + mlp,
            Selector::Inputs(_) | Selector::Blocks(_) => active * (attention + mlp),
            Selector::Neurons(neurons) => {
                // The exact gate is read whole, and then known of the active neurons.
                let gate = match neurons.scorer {
                    Scorer::Gate(_) => layer.mlp.deciding().weight.byte_len() as f64,
                    _ => 0.0,
                };
                let gathered = if active > DENSE_FROM { 1.0 } else { active };
                attention + neurons.scorer.bytes(index) as f64 + gate + gathered * (mlp - gate)
            }
        }
    };
    active.iter().enumerate().map(layer).sum::<f64>() + weights.head.byte_len() as f64
}
