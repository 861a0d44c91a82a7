//! Rotary embeddings of a configuration, in both spellings: `rope_theta` with `rope_scaling`, and transformers 5's
//! `rope_parameters`, which holds both, for each type of layer where they differ. Where a configuration has both spellings
//! `rope_scaling` counts, as in transformers 5.

use super::MAX_SIZE;
use super::family::Family;
use crate::checkpoint::fields::Fields;
use crate::error::Result;
use crate::spec::{Positions, Rope, RopeScaling};

/// What a rotary embedding depends on besides its own fields.
pub(super) struct Context<'a> {
    pub config: &'a Fields<'a>,
    pub family: &'a Family,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
}

impl Context<'_> {
    /// The model's rotary embeddings.
    pub fn positions(&self) -> Result<Positions> {
        let (config, family) = (self.config, self.family);
        let parameters = config.object("rope_parameters")?;
        let scaling = config.object("rope_scaling")?.filter(|scaling| !scaling.is_empty());
        let Some(windowed_theta) = family.windowed_theta else {
            if let (Some(scaling), Some(parameters)) = (&scaling, &parameters) {
                self.refuse_loss(scaling, parameters)?;
            }
            let full = self.rope(scaling.or(parameters), None, "rope_theta", family.theta)?;
            return Ok(Positions::Rope { full, windowed: None });
        };
        let of = |layers| match &parameters {
            Some(parameters) => parameters.object(layers),
            None => Ok(None),
        };
        let full = of("full_attention")?;
        let full = match scaling {
            Some(scaling) => self.rope(Some(scaling), full.as_ref(), "rope_theta", family.theta)?,
            None => self.rope(full, None, "rope_theta", family.theta)?,
        };
        let windowed = self.rope(of("sliding_attention")?, None, "rope_local_base_freq", windowed_theta)?;
        Ok(Positions::Rope { full, windowed: Some(windowed) })
    }

    /// transformers drops `rope_parameters` with its theta where there is `rope_scaling`: the model would be another than meant.
    fn refuse_loss(&self, scaling: &Fields, parameters: &Fields) -> Result<()> {
        const FIELD: &str = "rope_theta";
        let Some(lost) = parameters.positive(FIELD)? else { return Ok(()) };
        let counts = scaling.positive(FIELD)?.or(self.config.positive(FIELD)?).unwrap_or(self.family.theta);
        if counts == lost {
            return Ok(());
        }
        let message = format!(
            "is {lost}, but rope_scaling counts instead of rope_parameters, and with it a rope_theta of {counts}: write all of \
             rope_scaling's fields into rope_parameters, and remove rope_scaling"
        );
        Err(parameters.error(FIELD, &message))
    }

    /// `beside` is where theta is, if not within the rules.
    fn rope(
        &self,
        rules: Option<Fields>,
        beside: Option<&Fields>,
        theta_field: &str,
        default_theta: f64,
    ) -> Result<Rope> {
        let theta_of = |fields: Option<&Fields>| match fields {
            Some(fields) => fields.positive("rope_theta"),
            None => Ok(None),
        };
        let within = theta_of(rules.as_ref())?.or(theta_of(beside)?);
        let theta = within.or(self.config.positive(theta_field)?).unwrap_or(default_theta);
        let rotary_dim = self.rotary_dim(rules.as_ref())?;
        let (scaling, attention_factor) = match rules {
            None => (RopeScaling::None, 1.0),
            Some(rules) => self.scaling(&rules, rotary_dim)?,
        };
        Ok(Rope { theta, rotary_dim, scaling, attention_factor: attention_factor as f32 })
    }

    fn rotary_dim(&self, rules: Option<&Fields>) -> Result<usize> {
        const FIELD: &str = "partial_rotary_factor";
        if !self.family.partial_rotary {
            return Ok(self.head_dim);
        }
        let within = match rules {
            Some(rules) => rules.positive(FIELD)?,
            None => None,
        };
        let part = within.or(self.config.positive(FIELD)?).unwrap_or(1.0);
        let rotary_dim = (self.head_dim as f64 * part) as usize;
        if part <= 1.0 && rotary_dim >= 2 && rotary_dim.is_multiple_of(2) {
            return Ok(rotary_dim);
        }
        let message = format!("is {part}, which rotates {rotary_dim} of {} dimensions: must be even", self.head_dim);
        Err(self.config.error(FIELD, &message))
    }

    /// The rule, and what cosines and sines are multiplied by.
    fn scaling(&self, rules: &Fields, rotary_dim: usize) -> Result<(RopeScaling, f64)> {
        let kind = match rules.str("rope_type")? {
            Some(kind) => Some(kind),
            None => rules.str("type")?,
        };
        // Early Phi-3 configurations call longrope `su` or `yarn`.
        let kind = match kind.unwrap_or("default") {
            "su" => "longrope",
            "yarn" if rules.has("short_factor") => "longrope",
            kind => kind,
        };
        Ok(match kind {
            "default" => (RopeScaling::None, 1.0),
            "linear" => (RopeScaling::Linear { factor: stretch(rules)? }, 1.0),
            "dynamic" => (RopeScaling::Dynamic { factor: stretch(rules)? }, 1.0),
            "llama3" => (self.llama3(rules)?, 1.0),
            "yarn" => self.yarn(rules)?,
            "longrope" => self.long_rope(rules, rotary_dim)?,
            other => {
                let message = format!("is {other:?}; supported: default, linear, dynamic, llama3, yarn, longrope");
                return Err(rules.error("rope_type", &message));
            }
        })
    }

    fn llama3(&self, rules: &Fields) -> Result<RopeScaling> {
        let number = |name: &str| rules.required(name, rules.positive(name)?);
        let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
        if low >= high {
            return Err(rules.error("high_freq_factor", &format!("({high}) must be above low_freq_factor ({low})")));
        }
        Ok(RopeScaling::Llama3 {
            factor: stretch(rules)?,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: self.original(rules)?,
        })
    }

    fn yarn(&self, rules: &Fields) -> Result<(RopeScaling, f64)> {
        let original = if rules.has(ORIGINAL) || self.config.has(ORIGINAL) {
            self.original(rules)?
        } else {
            self.max_position_embeddings
        };
        let factor = stretch(rules)?;
        let sharpen = |scale: f64| 0.1 * scale * factor.ln() + 1.0;
        let attention_factor = match (rules.positive("attention_factor")?, rules.positive("mscale")?) {
            (Some(attention_factor), _) => attention_factor,
            (None, Some(scale)) if rules.has("mscale_all_dim") => {
                let all = rules.positive("mscale_all_dim")?;
                all.map_or(sharpen(1.0), |all| sharpen(scale) / sharpen(all))
            }
            (None, _) => sharpen(1.0),
        };
        let scaling = RopeScaling::Yarn {
            factor,
            beta_fast: rules.positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: rules.positive("beta_slow")?.unwrap_or(1.0),
            truncate: rules.bool("truncate")?.unwrap_or(true),
            original_max_position_embeddings: original,
        };
        Ok((scaling, attention_factor))
    }

    fn long_rope(&self, rules: &Fields, rotary_dim: usize) -> Result<(RopeScaling, f64)> {
        let original = self.original(rules)?;
        let factors = |name: &str| {
            let factors = rules.required(name, rules.positives(name)?)?;
            if factors.len() == rotary_dim / 2 {
                return Ok(factors);
            }
            let message =
                format!("must have {} entries, one for each rotated pair, found {}", rotary_dim / 2, factors.len());
            Err(rules.error(name, &message))
        };
        let scaling = RopeScaling::LongRope {
            short_factor: factors("short_factor")?,
            long_factor: factors("long_factor")?,
            original_max_position_embeddings: original,
        };
        let original = original as f64;
        let factor = rules.positive("factor")?.unwrap_or(self.max_position_embeddings as f64 / original);
        let attention_factor = match rules.positive("attention_factor")? {
            Some(attention_factor) => attention_factor,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        Ok((scaling, attention_factor))
    }

    /// Positions before the stretch. Beside the rules (Phi-3) it counts before what is within them.
    fn original(&self, rules: &Fields) -> Result<usize> {
        let beside = self.config.usize(ORIGINAL, 2..=MAX_SIZE)?;
        rules.required(ORIGINAL, beside.or(rules.usize(ORIGINAL, 2..=MAX_SIZE)?))
    }
}

const ORIGINAL: &str = "original_max_position_embeddings";

fn stretch(rules: &Fields) -> Result<f64> {
    let factor = rules.required("factor", rules.positive("factor")?)?;
    if (1.0..=1024.0).contains(&factor) {
        Ok(factor)
    } else {
        Err(rules.error("factor", &format!("must be in 1..=1024, found {factor}")))
    }
}
