//! How to quantise.

use serde::{Deserialize, Serialize};
use sparrow::{Error, Result};

use crate::named::named;

/// How weights are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Each to the nearest value, with the scales of least squared error.
    Rtn,
    /// One input after the other, the inputs that are still to come making up for what rounding did to the outputs
    /// (arXiv 2210.17323).
    Gptq,
    /// To the nearest, after inputs that matter more were scaled up and what they come from was scaled down (arXiv 2306.00978).
    Awq,
}

named!(Method, "method", Rtn => "rtn", Gptq => "gptq", Awq => "awq");

/// Which weights share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Along {
    /// Those of one output and several inputs: what compressed-tensors stores.
    #[default]
    Input,
    /// Those of one input and several outputs: rows of inputs, which can be left out.
    Output,
}

named!(Along, "side", Input => "input", Output => "output");

/// What [`quantize`](super::quantize) should do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizeOptions {
    /// How weights are rounded.
    pub method: Method,
    /// Bits of a weight, 4 or 8.
    pub bits: u32,
    /// Bits of a weight on average, scales included: where 4 cost most for what they save, weights get 8. None: all have `bits`.
    pub average_bits: Option<f64>,
    /// Weights that share a scale; none: a row.
    pub group: Option<usize>,
    /// Where these weights lie.
    pub along: Along,
    /// Groups have a zero point of their own instead of being symmetric.
    pub zero_points: bool,
    /// Patterns (`*`, `?`, `[...]`) of the names of tensors to quantise; none: every matrix of the decoder layers.
    pub include: Vec<String>,
    /// Patterns of those to leave as they are.
    pub exclude: Vec<String>,
    /// Tokens per calibration window.
    pub window: usize,
    /// Windows begin with the beginning-of-sequence token, where the tokenizer adds one.
    pub bos: bool,
    /// Tokens of the text to use, the held-out part included.
    pub max_tokens: usize,
}

impl QuantizeOptions {
    /// Group sizes of 4-bit weights.
    pub const GROUPS: [usize; 3] = [32, 64, 128];

    /// The usual settings: groups of 32 for 4 bits.
    pub fn new(method: Method, bits: u32) -> Self {
        QuantizeOptions {
            method,
            bits,
            average_bits: None,
            group: (bits == 4).then_some(32),
            along: Along::Input,
            zero_points: false,
            include: Vec::new(),
            exclude: Vec::new(),
            window: 256,
            bos: true,
            max_tokens: 65_536,
        }
    }

    /// # Errors
    /// If there is no format for weights of so many bits in such groups.
    pub(super) fn check(&self) -> Result<()> {
        if self.average_bits.is_some() {
            let message = match (self.bits, self.along) {
                (4, Along::Input) => None,
                (4, Along::Output) => Some("is for weights along the input: those along the output have 4 bits only"),
                _ => Some("is for 4 bits, of which some become 8: leave --bits out"),
            };
            message.map_or(Ok(()), |message| Err(Error::option("average-bits", message)))?;
        }
        if self.along == Along::Output {
            if self.bits != 4 {
                return Err(Error::option(
                    "along",
                    "output is for 4 bits: --dtype int8 does it when a model is loaded",
                ));
            }
            if self.method == Method::Awq {
                // An input has its own scales: scaling it changes nothing.
                return Err(Error::option("along", "output leaves nothing to gain by scaling inputs: use gptq or rtn"));
            }
        }
        match (self.bits, self.group) {
            (4, Some(group)) if Self::GROUPS.contains(&group) => Ok(()),
            (4, Some(group)) => Err(Error::option("group", format!("must be 32, 64 or 128, found {group}"))),
            (4, None) => Err(Error::option("group", "is missing: 4 bits take groups of 32, 64 or 128")),
            (8, Some(_)) => Err(Error::option("group", "is for 4 bits: weights of 8 bits have one scale per row")),
            (8, None) if self.zero_points => {
                Err(Error::option("zero-points", "are for 4 bits: weights of 8 bits are symmetric"))
            }
            (8, None) => Ok(()),
            (bits, _) => Err(Error::option("bits", format!("must be 4 or 8, found {bits}"))),
        }
    }
}
