//! Random active sets of a given size and step-to-step overlap: what a selector costs and gains, without a claim about
//! quality.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::model::spec::ModelSpec;

/// A cycle of precomputed random masks per layer.
#[derive(Debug)]
pub(crate) struct Forced {
    cycle: Vec<Vec<u64>>,
    /// Rows so far.
    pub step: usize,
}

impl Forced {
    const CYCLE: usize = 64;

    /// The same for every run.
    pub fn new(spec: &ModelSpec, active: f32, overlap: f32) -> Self {
        let n = spec.intermediate_size;
        let keep = ((n as f32 * active).round() as usize).min(n);
        let replaced = ((keep as f32 * (1.0 - overlap)).round() as usize).min(n - keep);
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let cycle = |_| {
            // ids[..keep] is the active set.
            let mut ids: Vec<usize> = (0..n).collect();
            partial_shuffle(&mut ids, 0, keep, &mut rng);
            let mut masks = Vec::with_capacity(Self::CYCLE * n.div_ceil(64));
            for _ in 0..Self::CYCLE {
                let mut mask = vec![0u64; n.div_ceil(64)];
                ids[..keep].iter().for_each(|&i| mask[i / 64] |= 1 << (i % 64));
                masks.extend(mask);
                partial_shuffle(&mut ids[..keep], 0, replaced, &mut rng);
                partial_shuffle(&mut ids, keep, keep + replaced, &mut rng);
                (0..replaced).for_each(|i| ids.swap(i, keep + i));
            }
            masks
        };
        Forced { cycle: (0..spec.num_layers).map(cycle).collect(), step: 0 }
    }

    /// The masks of `m` rows of `layer`, whose `n` neurons are the bits.
    pub fn masks(&self, layer: usize, m: usize, n: usize, out: &mut [u64]) {
        let words = n.div_ceil(64);
        for (r, mask) in out.chunks_exact_mut(words).take(m).enumerate() {
            let at = (self.step + r) % Self::CYCLE * words;
            mask.copy_from_slice(&self.cycle[layer][at..at + words]);
        }
    }
}

/// Puts a random choice from `ids[from..]` into `ids[from..to]`.
fn partial_shuffle(ids: &mut [usize], from: usize, to: usize, rng: &mut ChaCha8Rng) {
    for i in from..to {
        let j = i + (rng.next_u64() % (ids.len() - i) as u64) as usize;
        ids.swap(i, j);
    }
}
