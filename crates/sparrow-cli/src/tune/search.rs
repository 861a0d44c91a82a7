//! Which settings keep a wanted quality.

use serde::{Serialize, Serializer};
use sparrow::internals::record::{Evaluation, Trial};
use sparrow::{DType, Error};
use sparrow_tools::quantize::Stage;
use sparrow_tools::tune::{Computed, FRACTIONS, Rounding, Setting, Tuning};

use crate::output::{Bars, progress};

/// How much quality may be lost.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// Mean KL divergence at most this, in nats.
    Divergence(f64),
    /// Perplexity at most this share above that of the model as it is.
    Perplexity(f64),
}

impl Target {
    /// As much again, so many times.
    fn times(self, factor: f64) -> Self {
        match self {
            Target::Divergence(most) => Target::Divergence(factor * most),
            Target::Perplexity(rise) => Target::Perplexity(factor * rise),
        }
    }

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
            gptq: self.setting.rounding != Rounding::Nearest,
            mixed: self.setting.rounding == Rounding::Mixed,
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

/// How else four bits are rounded, and how many times less than to the nearest that costs at best.
const ROUNDINGS: [(Rounding, f64); 2] = [(Rounding::Gptq, 4.0), (Rounding::Mixed, 8.0)];

/// What was measured of every type: everything, what loses nothing, and as few inputs as keep the target; and four bits by GPTQ, where
/// that may keep it, with some in eight bits if it does not. The model as it is comes first.
///
/// # Errors
/// If the model cannot be quantised or read.
pub fn search(tuning: &mut Tuning, target: Target) -> anyhow::Result<Vec<Tried>> {
    let (mut tried, lossless) = (Vec::new(), tuning.lossless());
    let mut measure = |tuning: &mut Tuning, setting: Setting| -> anyhow::Result<Evaluation> {
        let bar = progress(format!("measuring {setting}"), 1, false);
        let quality = tuning.measure(setting, |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        let kept = target.accepts(&quality);
        tried.push(Tried { setting, quality: quality.clone(), kept, decode_tokens_per_s: None, speed_up: None });
        Ok(quality)
    };
    for dtype in DTYPES {
        let nearest = |computed| Setting { dtype, rounding: Rounding::Nearest, computed };
        let mut kept = false;
        for &computed in lossless {
            let quality = measure(tuning, nearest(computed))?;
            kept = target.accepts(&quality);
            if dtype == Some(DType::I4G32) && computed == Computed::All {
                for (rounding, gains) in ROUNDINGS {
                    if target.times(gains).accepts(&quality)
                        && round(tuning, rounding)?
                        && target.accepts(&measure(tuning, Setting { rounding, ..nearest(computed) })?)
                    {
                        break;
                    }
                }
            }
        }
        if !kept {
            continue;
        }
        // Halving: fewer inputs never cost less.
        let (mut kept, mut lost) = (0, FRACTIONS.len());
        while kept < lost {
            let middle = usize::midpoint(kept, lost);
            let quality = measure(tuning, nearest(Computed::Inputs(middle)))?;
            match target.accepts(&quality) {
                true => kept = middle + 1,
                false => lost = middle,
            }
        }
    }
    Ok(tried)
}

/// Rounds the model by GPTQ; false, and says why, where that cannot be done.
fn round(tuning: &mut Tuning, rounding: Rounding) -> anyhow::Result<bool> {
    let mut bars = Bars::new(|stage: Stage| stage.name("rounding by GPTQ"), |_| false);
    let rounded = tuning.round(rounding, |stage, done, total| bars.show(stage, done, total));
    bars.clear();
    match rounded {
        Ok(()) => Ok(true),
        // Files that cannot be written will not be later either.
        Err(error @ Error::Io { .. }) => Err(error.into()),
        Err(error) => {
            note!("four bits by GPTQ are left out: {error}");
            Ok(false)
        }
    }
}
