//! What an error in each part of a model is worth, and from that how much of its inputs each can do without. Projections that read the
//! same input are a site.
//!
//! What a site is worth is measured: its inputs are thinned by half, alone in the model, and the KL divergence that this costs is
//! divided by the energy that was left out. Dropping an input costs so much energy times that, and saves the weights of its outputs:
//! one threshold for the whole model, on magnitudes times the norms of the weights' columns (WINA, arXiv 2505.19427) and what the site
//! is worth, drops, everywhere, what costs least for what it saves.

use sparrow::internals::backend::{ActiveNeurons, Observer, Point, Threshold};
use sparrow::internals::select::InputThresholds;
use sparrow::internals::weights::LayerWeights;
use sparrow::{Cpu, Model, Result, Selector};

use super::inputs::{InputCalibration, by_projection};
use super::rest::{Rest, divergence};

/// Tokens that it is measured on.
pub(crate) const TOKENS: usize = 256;

/// Worth is at least this fraction of the middle one: a site that cost nothing on a few tokens is not therefore free.
const LEAST: f64 = 0.01;

/// Sites of a layer.
const SITES: usize = 4;

/// Halvings that find the threshold.
const STEPS: usize = 60;

/// What the sites of a model are worth.
pub(crate) struct Worth {
    /// Per layer, by output: the threshold of a site is that of the model divided by it.
    by_output: Vec<[f64; 4]>,
    outputs: Vec<[f64; 4]>,
    /// Weights that read the site's inputs.
    weights: Vec<[f64; 4]>,
}

impl Worth {
    /// Measures every site on windows of tokens. `progress(done, all)` counts sites.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn measure(
        cpu: &Cpu,
        model: &Model,
        calibration: &InputCalibration,
        window: usize,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Self> {
        let layers = &model.weights.layers;
        let reference =
            Rest { cpu, model, window, layer: 0 }.run(&calibration.residual[0], &Selector::dense(), &mut ())?;
        let probe = Probe { cpu, model, calibration, window, reference: &reference };
        let all = (layers.len() * SITES) as u64;
        let mut worth = vec![[0.0; 4]; layers.len()];
        for (l, layer) in layers.iter().enumerate() {
            let outputs = outputs(layer);
            for site in 0..SITES {
                progress((l * SITES + site) as u64, all);
                worth[l][site] = (probe.cost_of_energy(l, site)? / outputs[site]).sqrt();
            }
        }
        let mut sorted: Vec<f64> = worth.as_flattened().to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let least = (LEAST * sorted[sorted.len() / 2]).max(f64::MIN_POSITIVE);
        worth.as_flattened_mut().iter_mut().for_each(|worth| *worth = worth.max(least));
        let weights = layers.iter().map(|layer| {
            let inputs = [layer.q.inputs(), layer.o.inputs(), layer.mlp.up.inputs(), layer.mlp.down.inputs()];
            let outputs = outputs(layer);
            std::array::from_fn(|site| inputs[site] as f64 * outputs[site])
        });
        Ok(Worth { by_output: worth, outputs: layers.iter().map(outputs).collect(), weights: weights.collect() })
    }

    /// By how much an error of the outputs of a site grows on its way to what the model predicts: √(KL divergence ÷ squared error of
    /// a token's outputs).
    pub fn of_errors(&self, layer: usize, site: usize) -> f64 {
        self.by_output[layer][site] * self.outputs[layer][site].sqrt()
    }

    /// Magnitudes, per layer and projection, above which inputs stay, so that a fraction `active` of the weights is read.
    pub fn thresholds(&self, calibration: &InputCalibration, active: f64) -> Vec<[f32; 7]> {
        let sites = || (0..self.by_output.len()).flat_map(|l| (0..SITES).map(move |site| (l, site)));
        let all: f64 = self.weights.as_flattened().iter().sum();
        let read = |threshold: f64| {
            let of = |(l, site): (usize, usize)| {
                self.weights[l][site] * calibration.above(l, site, (threshold / self.by_output[l][site]) as f32)
            };
            sites().map(of).sum::<f64>() / all
        };
        let most = |(l, site): (usize, usize)| f64::from(calibration.largest(l, site)) * self.by_output[l][site];
        // As much is read at `low` as is wanted or more, at `high` less.
        let (mut low, mut high) = (0.0, sites().map(most).fold(0.0, f64::max));
        for _ in 0..STEPS {
            let middle = (low + high) / 2.0;
            if read(middle) >= active { low = middle } else { high = middle }
        }
        // All is kept as it is: zeros too.
        let threshold = if active < 1.0 { low } else { 0.0 };
        let layer = |worth: &[f64; 4]| by_projection(worth.map(|worth| (threshold / worth) as f32));
        self.by_output.iter().map(layer).collect()
    }
}

/// Outputs of the projections that share each site.
fn outputs(layer: &LayerWeights) -> [f64; 4] {
    let mlp = &layer.mlp;
    let gate = mlp.gate.as_ref().map_or(0, |gate| gate.outputs());
    [
        layer.q.outputs() + layer.k.outputs() + layer.v.outputs(),
        layer.o.outputs(),
        gate + mlp.up.outputs(),
        mlp.down.outputs(),
    ]
    .map(|outputs| outputs as f64)
}

/// Thins single sites of a model.
struct Probe<'a> {
    cpu: &'a Cpu,
    model: &'a Model,
    calibration: &'a InputCalibration,
    window: usize,
    /// Log-probabilities of the dense model, `[tokens, vocab]`.
    reference: &'a [f32],
}

impl Probe<'_> {
    /// The KL divergence that thinning a site by half costs, for each unit of energy that is left out.
    fn cost_of_energy(&self, layer: usize, site: usize) -> Result<f64> {
        let Probe { cpu, model, calibration, window, reference } = *self;
        let threshold = calibration.middle(layer, site);
        let mut rules = [Threshold::Fixed(0.0); 4];
        rules[site] = Threshold::Fixed(threshold);
        let thin = Selector::input(InputThresholds {
            rules: vec![by_projection(rules); model.spec.num_layers],
            norms: Some(calibration.norms.clone()),
        });
        let norms = &calibration.norms[layer][site];
        let mut dropped = Dropped { layer, site, norms, threshold, energy: 0.0 };
        let log_p = Rest { cpu, model, window, layer }.run(&calibration.residual[layer], &thin, &mut dropped)?;
        let vocab = model.spec.vocab_size;
        let energy = dropped.energy / (log_p.len() / vocab) as f64;
        Ok(if energy > 0.0 { divergence(cpu, vocab, reference, &log_p) / energy } else { 0.0 })
    }
}

/// Counts the energy Σ (x·norm)² of a site's inputs that are not above a threshold, but for those of the first token, which stay.
struct Dropped<'a> {
    layer: usize,
    site: usize,
    norms: &'a [f32],
    threshold: f32,
    energy: f64,
}

impl Dropped<'_> {
    fn add(&mut self, layer: usize, site: usize, values: &[f32], m: usize) {
        if (layer, site) == (self.layer, self.site) {
            let weighted = values[values.len() / m..].iter().zip(self.norms.iter().cycle()).map(|(v, norm)| v * norm);
            let dropped = weighted.filter(|v| v.abs() <= self.threshold);
            self.energy += dropped.map(|v| f64::from(v).powi(2)).sum::<f64>();
        }
    }
}

impl Observer for Dropped<'_> {
    fn see(&mut self, layer: usize, point: Point, values: &[f32], m: usize) {
        match point {
            Point::AttentionInput => self.add(layer, 0, values, m),
            Point::Attended => self.add(layer, 1, values, m),
            Point::Neurons => self.add(layer, 3, values, m),
            _ => {}
        }
    }

    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, _: Option<ActiveNeurons>) {
        self.add(layer, 2, h, m);
    }
}
