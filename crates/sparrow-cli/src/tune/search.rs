//! Which settings keep a wanted quality.

use serde::{Serialize, Serializer};
use sparrow::DType;
use sparrow::internals::record::{Evaluation, Trial};
use sparrow_tools::tune::{Computed, FRACTIONS, Setting, Tuning};

use crate::output::progress;

/// How much quality may be lost.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// Mean KL divergence at most this, in nats.
    Divergence(f64),
    /// Perplexity at most this share above that of the model as it is.
    Perplexity(f64),
}

impl Target {
    fn accepts(self, quality: &Evaluation) -> bool {
        match self {
            Target::Divergence(most) => quality.kl_mean <= most,
            Target::Perplexity(rise) => quality.perplexity <= quality.dense_perplexity * (1.0 + rise),
        }
    }
}

/// A setting that was measured.
#[derive(Debug, Serialize)]
pub struct Tried {
    #[serde(serialize_with = "named")]
    pub setting: Setting,
    /// On text to choose on.
    pub quality: Evaluation,
    /// Whether that keeps the target.
    pub kept: bool,
    /// Median; of what was timed.
    pub decode_tokens_per_s: Option<f64>,
    /// Median of its ratio to the model as it is, turn by turn.
    pub speed_up: Option<f64>,
}

fn named<S: Serializer>(setting: &Setting, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(setting)
}

impl Tried {
    /// What is kept of it.
    pub fn trial(&self) -> Trial {
        let e = &self.quality;
        let target_active = match self.setting.computed {
            Computed::Inputs(at) => FRACTIONS[at],
            Computed::All | Computed::OpenGates => 1.0,
        };
        Trial {
            target_active,
            dtype: self.setting.dtype,
            active_fraction: e.active_fraction,
            perplexity: e.perplexity,
            dense_perplexity: e.dense_perplexity,
            kl_mean: e.kl_mean,
            accepted: self.kept,
        }
    }
}

/// What weights are quantised to, from the most bits to the fewest.
const DTYPES: [Option<DType>; 4] = [None, Some(DType::Q8_0), Some(DType::I8), Some(DType::I4G32)];

/// What was measured of every type: everything, what loses nothing, and as few inputs as keep the target. The model as it is comes first.
///
/// # Errors
/// If the model cannot be quantised or read.
pub fn search(tuning: &mut Tuning, target: Target) -> anyhow::Result<Vec<Tried>> {
    let (mut tried, lossless) = (Vec::new(), tuning.lossless());
    let mut measure = |setting: Setting| -> anyhow::Result<bool> {
        let bar = progress(format!("measuring {setting}"), 1, false);
        let quality = tuning.measure(setting, |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        let kept = target.accepts(&quality);
        tried.push(Tried { setting, quality, kept, decode_tokens_per_s: None, speed_up: None });
        Ok(kept)
    };
    for dtype in DTYPES {
        let mut kept = false;
        for &computed in lossless {
            kept = measure(Setting { dtype, computed })?;
        }
        if !kept {
            continue;
        }
        // Halving: fewer inputs never cost less.
        let (mut kept, mut lost) = (0, FRACTIONS.len());
        while kept < lost {
            let middle = usize::midpoint(kept, lost);
            match measure(Setting { dtype, computed: Computed::Inputs(middle) })? {
                true => kept = middle + 1,
                false => lost = middle,
            }
        }
    }
    Ok(tried)
}
