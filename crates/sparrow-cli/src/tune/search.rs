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
    /// How many times what may be lost was lost; more than 1: too much.
    fn exceeded(self, quality: &Evaluation) -> f64 {
        let (lost, most) = match self {
            Target::Divergence(most) => (quality.kl_mean, most),
            Target::Perplexity(rise) => (quality.perplexity / quality.dense_perplexity - 1.0, rise),
        };
        if lost <= 0.0 { 0.0 } else { lost / most }
    }

    fn accepts(self, quality: &Evaluation) -> bool {
        self.exceeded(quality) <= 1.0
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
            average_bits: self.setting.rounding.average_bits(),
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

/// What GPTQ divides the cost of rounding four bits to the nearest by, about: four on SmolLM2.
const GPTQ_GAINS: f64 = 4.0;

/// Tenths of a bit for a weight where all have four, in groups of 32 with a scale.
const FOUR_BITS: u32 = 45;

/// The most that are tried: eight bits then read a quarter more and cost far less.
const MOST: u32 = 65;

/// What ten tenths of a bit more divide the cost by: less than the 1.9 of SmolLM2, so that few attempts are needed.
const BIT_GAINS: f64 = 1.75;

/// Attempts to find how many tenths keep the target: each rounds the whole model.
const ATTEMPTS: usize = 2;

/// Tenths of a bit that keep the target where `tenths` exceed it so many times.
fn enough(tenths: u32, exceeded: f64) -> u32 {
    tenths.saturating_add((10.0 * exceeded.ln() / BIT_GAINS.ln()).ceil().max(1.0) as u32)
}

/// What was measured of every type: everything, what loses nothing, and as few inputs as keep the target; and four bits by GPTQ, where
/// that may keep it, with as much in eight bits as it takes if it does not. The model as it is comes first.
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
                finer(target.exceeded(&quality), |rounding| {
                    let setting = Setting { rounding, ..nearest(computed) };
                    let done = round(tuning, setting)?;
                    done.then(|| Ok(target.exceeded(&measure(tuning, setting)?))).transpose()
                })?;
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

/// Has four bits `rounded` by GPTQ where that may keep the target, which rounding to the nearest `exceeded` so many times, and if it
/// does not with as many tenths of a bit as it takes. `rounded` says by how much the target is exceeded then; none: it cannot be done.
fn finer(exceeded: f64, mut rounded: impl FnMut(Rounding) -> anyhow::Result<Option<f64>>) -> anyhow::Result<()> {
    let mut exceeded = if exceeded <= GPTQ_GAINS {
        let Some(exceeded) = rounded(Rounding::Gptq)? else { return Ok(()) };
        exceeded
    } else {
        exceeded / GPTQ_GAINS
    };
    let mut tenths = FOUR_BITS;
    for _ in 0..ATTEMPTS {
        let too_much = exceeded > 1.0;
        if !too_much {
            break;
        }
        tenths = enough(tenths, exceeded);
        if tenths > MOST {
            break;
        }
        let Some(now) = rounded(Rounding::Mixed(tenths))? else { break };
        exceeded = now;
    }
    Ok(())
}

/// Rounds the model by GPTQ; false, and says why, where that cannot be done.
fn round(tuning: &mut Tuning, setting: Setting) -> anyhow::Result<bool> {
    let mut bars = Bars::new(|stage: Stage| stage.name("rounding by GPTQ"), |_| false);
    let rounded = tuning.round(setting.rounding, |stage, done, total| bars.show(stage, done, total));
    bars.clear();
    match rounded {
        Ok(()) => Ok(true),
        // Files that cannot be written will not be later either.
        Err(error @ Error::Io { .. }) => Err(error.into()),
        Err(error) => {
            note!("{setting} is left out: {error}");
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is tried where rounding to the nearest exceeds the target by `nearest`, GPTQ by `gptq`, and tenths by what `mixed` says.
    fn tried(nearest: f64, gptq: f64, mixed: impl Fn(u32) -> f64) -> Vec<Rounding> {
        let mut tried = Vec::new();
        let rounded = |rounding| {
            tried.push(rounding);
            Ok(Some(match rounding {
                Rounding::Mixed(tenths) => mixed(tenths),
                _ => gptq,
            }))
        };
        finer(nearest, rounded).unwrap();
        tried
    }

    #[test]
    fn as_many_bits_are_tried_as_the_target_takes() {
        let by_bits = |tenths: u32| 1.6 * 0.53f64.powf(f64::from(tenths - 45) / 10.0);
        assert_eq!(tried(1.5, 0.9, |_| 0.0), [Rounding::Gptq]);
        // As fast and better where the nearest keeps it already.
        assert_eq!(tried(0.5, 0.2, |_| 0.0), [Rounding::Gptq]);
        assert_eq!(tried(2.0, 1.6, by_bits), [Rounding::Gptq, Rounding::Mixed(54)]);
        // A hair too much takes a tenth at least; too little is mended once.
        assert_eq!(tried(2.0, 1.001, |_| 0.9), [Rounding::Gptq, Rounding::Mixed(46)]);
        assert_eq!(tried(2.0, 1.6, |_| 1.1), [Rounding::Gptq, Rounding::Mixed(54), Rounding::Mixed(56)]);
        // Not even GPTQ at its best keeps it, or more bits are needed than are tried.
        assert_eq!(tried(5.0, 9.0, |_| 0.9), [Rounding::Mixed(49)]);
        assert_eq!(tried(5.0, 9.0, |_| 1.5), [Rounding::Mixed(49), Rounding::Mixed(57)]);
        assert_eq!(tried(40.0, 9.0, |_| 0.9), []);
        assert_eq!(tried(f64::INFINITY, 9.0, |_| 0.9), []);
        assert_eq!(tried(f64::NAN, 9.0, |_| 0.9), []);
    }

    #[test]
    fn what_exceeds_a_target_is_not_accepted() {
        let quality = |perplexity: f64, kl_mean: f64| Evaluation {
            tokens: 100,
            perplexity,
            dense_perplexity: 10.0,
            kl_mean,
            kl_p99: 1.0,
            top1_agreement: 0.9,
            active_fraction: 1.0,
            active_fraction_per_layer: vec![1.0],
        };
        let exceeded = |target: Target, perplexity, kl| target.exceeded(&quality(perplexity, kl));
        assert_eq!(exceeded(Target::Divergence(0.1), 10.0, 0.2), 2.0);
        assert!((exceeded(Target::Divergence(0.1), 10.0, 0.05) - 0.5).abs() < 1e-9);
        assert!((exceeded(Target::Perplexity(0.01), 10.2, 0.2) - 2.0).abs() < 1e-9);
        // Nothing may be lost: gains are accepted, the least loss is not.
        assert!(Target::Perplexity(0.0).accepts(&quality(9.9, 0.2)));
        assert!(Target::Perplexity(0.0).accepts(&quality(10.0, 0.2)));
        assert!(!Target::Perplexity(0.0).accepts(&quality(10.1, 0.2)));
        assert!(!Target::Perplexity(0.01).accepts(&quality(f64::NAN, 0.2)));
    }
}
