//! Calibration of skipped blocks: how much each block changes the residual stream (block influence, ShortGPT,
//! arXiv 2403.03853).

use sparrow::internals::backend::{Observer, Point};
use sparrow::internals::select::SkippedBlocks;
use sparrow::internals::weights::LayerWeights;

/// Mean cosine between the residual stream before and after each attention block and each MLP.
pub(crate) struct BlockInfluence {
    hidden: usize,
    before: Vec<f32>,
    /// Attention and MLP of each layer: sum of cosines.
    cosines: Vec<[f64; 2]>,
}

impl BlockInfluence {
    pub fn new(layers: usize, hidden: usize) -> Self {
        BlockInfluence { hidden, before: Vec::new(), cosines: vec![[0.0; 2]; layers] }
    }

    /// Whether all activations seen were finite.
    pub fn is_finite(&self) -> bool {
        self.cosines.iter().flatten().all(|cosine| cosine.is_finite())
    }

    /// The blocks that change least, left out until a fraction `active` of the layers' weights is left.
    pub fn skipped(&self, layers: &[LayerWeights], active: f64) -> SkippedBlocks {
        let size = |l: usize, block: usize| match block {
            0 => layers[l].attention_bytes(),
            _ => layers[l].mlp.bytes(),
        };
        let mut blocks: Vec<(usize, usize)> = (0..layers.len()).flat_map(|l| [(l, 0), (l, 1)]).collect();
        let all: u64 = blocks.iter().map(|&(l, block)| size(l, block)).sum();
        blocks.sort_by(|a, b| self.cosines[b.0][b.1].total_cmp(&self.cosines[a.0][a.1]));
        let (mut skipped, mut left) = (SkippedBlocks::default(), all);
        for (l, block) in blocks {
            let without = left - size(l, block);
            if (without as f64) < active * all as f64 {
                continue;
            }
            left = without;
            if block == 0 {
                skipped.attention.insert(l)
            } else {
                skipped.mlp.insert(l)
            };
        }
        skipped
    }
}

impl Observer for BlockInfluence {
    fn see(&mut self, layer: usize, point: Point, x: &[f32], _: usize) {
        let block = match point {
            Point::MiddleResidual => Some((layer, 0)),
            Point::Residual if layer > 0 => Some((layer - 1, 1)),
            Point::Residual => None,
            _ => return,
        };
        if let Some((layer, block)) = block {
            let rows = self.before.chunks_exact(self.hidden).zip(x.chunks_exact(self.hidden));
            self.cosines[layer][block] += rows.map(|(a, b)| cosine(a, b)).sum::<f64>();
        }
        self.before.clear();
        self.before.extend_from_slice(x);
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE)
}
