//! `forced`: random active sets of a given size and step-to-step overlap: what a selector costs and gains, without a claim about
//! quality.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::SelectorSpec;
use super::kind::{Kind, Loaded};
use super::selector::{Neurons, Selector};
use crate::backend::{MaskCycle, Scorer};
use crate::error::{Error, Result};
use crate::spec::ModelSpec;

/// See the file.
pub struct Forced;

/// Tokens until masks repeat.
const CYCLE: usize = 64;

/// What comes after the colon.
pub fn parameters(active: f32, overlap: f32) -> String {
    format!("active={active},overlap={overlap}")
}

/// The active fraction and the overlap that parameters name.
pub fn sizes(parameters: &str) -> Option<(f32, f32)> {
    let (active, overlap) = parameters.split_once(',')?;
    let active = active.strip_prefix("active=")?.parse().ok()?;
    Some((active, overlap.strip_prefix("overlap=")?.parse().ok()?))
}

impl Kind for Forced {
    fn name(&self) -> &'static str {
        "forced"
    }

    fn usage(&self) -> &'static str {
        "forced:active=F,overlap=P"
    }

    fn help(&self) -> &'static str {
        "random neurons: speed only"
    }

    fn is_hidden(&self) -> bool {
        true
    }

    fn parse(&self, given: Option<&str>) -> std::result::Result<Option<String>, String> {
        let text = given.map_or("forced".to_owned(), |given| format!("forced:{given}"));
        let parsed = given.and_then(sizes).ok_or_else(|| format!("selector {text:?}: use {}", self.usage()))?;
        Ok(Some(parameters(parsed.0, parsed.1)))
    }

    fn ready(&self, spec: &SelectorSpec, model: &Loaded) -> Result<Selector> {
        let (active, overlap) = spec.parameters().and_then(sizes).expect("checked when it was parsed");
        for (option, value) in [("active", active), ("overlap", overlap)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::option(option, format!("must be in 0..=1, found {value}")));
            }
        }
        Ok(Selector::forced(model.spec, active, overlap))
    }
}

impl Selector {
    /// Random active sets, the same for every run.
    pub fn forced(spec: &ModelSpec, active: f32, overlap: f32) -> Self {
        let n = spec.intermediate_size;
        let keep = ((n as f32 * active).round() as usize).min(n);
        let replaced = ((keep as f32 * (1.0 - overlap)).round() as usize).min(n - keep);
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let masks = |_| {
            // ids[..keep] is the active set.
            let mut ids: Vec<usize> = (0..n).collect();
            partial_shuffle(&mut ids, 0, keep, &mut rng);
            let mut masks = Vec::with_capacity(CYCLE * n.div_ceil(64));
            for _ in 0..CYCLE {
                let mut mask = vec![0u64; n.div_ceil(64)];
                ids[..keep].iter().for_each(|&i| mask[i / 64] |= 1 << (i % 64));
                masks.extend(mask);
                partial_shuffle(&mut ids[..keep], 0, replaced, &mut rng);
                partial_shuffle(&mut ids, keep, keep + replaced, &mut rng);
                (0..replaced).for_each(|i| ids.swap(i, keep + i));
            }
            masks
        };
        let cycle = MaskCycle { masks: (0..spec.num_layers).map(masks).collect(), length: CYCLE };
        let scorer = Scorer::Masks(cycle.into());
        Selector::Neurons(Neurons { scorer, rules: Vec::new(), look_ahead: false })
    }
}

/// Puts a random choice from `ids[from..]` into `ids[from..to]`.
fn partial_shuffle(ids: &mut [usize], from: usize, to: usize, rng: &mut ChaCha8Rng) {
    for i in from..to {
        let j = i + (rng.next_u64() % (ids.len() - i) as u64) as usize;
        ids.swap(i, j);
    }
}
