//! Rotary position embeddings as data, and the frequencies that follow from it.

/// Rotary position embedding: frequencies as a function of the dimension, and how they are stretched for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// Leading dimensions of a head that are rotated; even.
    pub rotary_dim: usize,
    /// Long-context rule.
    pub scaling: RopeScaling,
    /// Cosines and sines are multiplied by this, so that attention stays as sharp over a stretched context; 1 changes nothing.
    pub attention_factor: f32,
}

/// `rope_scaling` of `config.json`, with the meaning transformers gives it.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as trained.
    None,
    /// Every frequency divided by `factor` (position interpolation, arXiv 2306.15595).
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// The base grows with the sequence once it passes the trained length (dynamic NTK).
    Dynamic {
        /// The stretch at `factor × max_position_embeddings`.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a smooth band between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high.
        high_freq_factor: f64,
        /// Positions before the stretch.
        original_max_position_embeddings: usize,
    },
    /// YaRN (arXiv 2309.00071): as llama3, with the band between given in dimensions.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Dimensions that turn more often than this within the original length are kept.
        beta_fast: f64,
        /// Dimensions that turn less often than this are divided by `factor`.
        beta_slow: f64,
        /// The ends of the band are rounded outwards to whole dimensions.
        truncate: bool,
        /// Positions before the stretch.
        original_max_position_embeddings: usize,
    },
    /// LongRoPE (arXiv 2402.13753, Phi-3): each frequency divided by its own factor, from one list up to the original
    /// length and from another beyond it.
    LongRope {
        /// Up to the original length; `rotary_dim / 2` values.
        short_factor: Vec<f64>,
        /// Beyond it.
        long_factor: Vec<f64>,
        /// Positions before the stretch.
        original_max_position_embeddings: usize,
    },
}

impl Rope {
    /// Radians per position of each rotated pair, for a sequence of `seq_len` tokens in a model trained for `trained`
    /// positions; writes `rotary_dim / 2` values in the f32 precision that transformers uses.
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn frequencies(&self, seq_len: usize, trained: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.rotary_dim / 2, "frequencies: out must have rotary_dim / 2 values");
        let dim = self.rotary_dim as f64;
        let mut theta = self.theta;
        if let RopeScaling::Dynamic { factor } = self.scaling
            && seq_len > trained
        {
            let stretch = factor * seq_len as f64 / trained as f64 - (factor - 1.0);
            theta *= stretch.powf(dim / (dim - 2.0));
        }
        for (i, f) in out.iter_mut().enumerate() {
            let frequency = theta.powf(-2.0 * i as f64 / dim);
            *f = match &self.scaling {
                RopeScaling::None | RopeScaling::Dynamic { .. } => frequency,
                RopeScaling::Linear { factor } => frequency / factor,
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                    let original = *original_max_position_embeddings as f64;
                    let wavelength = 2.0 * std::f64::consts::PI / frequency;
                    if wavelength > original / low_freq_factor {
                        frequency / factor
                    } else if wavelength < original / high_freq_factor {
                        frequency
                    } else {
                        let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                }
                RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_max_position_embeddings } => {
                    // The dimension that turns so often within the original length.
                    let dimension = |turns: f64| {
                        let positions = *original_max_position_embeddings as f64;
                        dim * (positions / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln())
                    };
                    let (mut low, mut high) = (dimension(*beta_fast), dimension(*beta_slow));
                    if *truncate {
                        (low, high) = (low.floor(), high.ceil());
                    }
                    let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
                    if low == high {
                        high += 0.001;
                    }
                    let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    frequency / factor * stretched + frequency * (1.0 - stretched)
                }
                RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings } => {
                    let long = seq_len > *original_max_position_embeddings;
                    frequency / if long { long_factor[i] } else { short_factor[i] }
                }
            } as f32;
        }
    }

    /// Whether frequencies change with the sequence's length.
    pub fn is_dynamic(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. } | RopeScaling::LongRope { .. })
    }
}
