//! How large keys are, channel by channel, as far as weights tell.

use std::sync::{Arc, OnceLock};

use super::LayerWeights;

/// See [`LayerWeights::key_sizes`]; computed when it is first asked for.
#[derive(Debug, Default)]
pub(super) struct KeySizes(OnceLock<Arc<[f32]>>);

impl LayerWeights {
    /// The size that each channel of a layer's keys is expected to have, `[kv_heads · head_dim]`, the two that rotate into each other
    /// alike; `rotary` channels of each head of `head_dim` are rotated. Biases make a few channels of some models a hundred times as
    /// large as the others (Qwen 2), which one scale for all does not bear.
    pub fn key_sizes(&self, head_dim: usize, rotary: usize) -> &Arc<[f32]> {
        self.key_sizes.0.get_or_init(|| {
            let mut squares = match &self.qk_norm {
                // A norm has squares of 1 on average.
                Some((_, norm)) => {
                    let of_channel = norm.weight.iter().map(|&g| f64::from(g).powi(2)).cycle();
                    of_channel.take(self.k.outputs()).collect()
                }
                None => self.projected_squares(),
            };
            let half = rotary / 2;
            for head in squares.chunks_exact_mut(head_dim) {
                for c in 0..half {
                    let mean = (head[c] + head[c + half]) / 2.0;
                    (head[c], head[c + half]) = (mean, mean);
                }
            }
            // What is never anything but zero may have any size.
            squares.iter().map(|&square| if square > 0.0 { square.sqrt() as f32 } else { 1.0 }).collect()
        })
    }

    /// Of every key channel the square of its bias and what inputs add that are normed and independent of each other.
    fn projected_squares(&self) -> Vec<f64> {
        let k = &self.k;
        let gain = |i: usize| self.attention_norm.as_ref().map_or(1.0, |norm| f64::from(norm.weight[i]));
        let mut squares = match &k.bias {
            Some(bias) => bias.iter().map(|&b| f64::from(b).powi(2)).collect(),
            None => vec![0.0; k.outputs()],
        };
        let mut row = vec![0.0; k.weight.cols()];
        for r in 0..k.weight.rows() {
            k.weight.decode(r..r + 1, &mut row);
            for (c, &w) in row.iter().enumerate() {
                let (input, output) = if k.input_major { (r, c) } else { (c, r) };
                squares[output] += (f64::from(w) * gain(input)).powi(2);
            }
        }
        squares
    }
}
