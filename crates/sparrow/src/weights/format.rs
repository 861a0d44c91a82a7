//! How the matrices of a model are kept in memory: every element, or a bitmap and the elements that are not zero.

use std::fmt;
use std::str::FromStr;

use glob::Pattern;
use sparrow_kernels::{BitmapParts, Compute};

use crate::error::Result;
use crate::tensor::{BitmapTensor, Weight};

/// How one matrix is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Whichever is faster for how many elements are zero, as measured.
    #[default]
    Auto,
    /// Every element.
    Dense,
    /// A bitmap, and the elements that are not zero.
    Bitmap,
}

const NAMES: [(&str, Format); 3] = [("auto", Format::Auto), ("dense", Format::Dense), ("bitmap", Format::Bitmap)];

/// How the matrices are kept, by name: the last rule whose pattern matches decides, and `auto` where none does.
///
/// As text: `[PATTERN=]auto|dense|bitmap`, separated by commas; patterns are those of a shell, on names as in the checkpoint
/// (`bitmap,*.down_proj.*=dense`).
#[derive(Debug, Clone, Default)]
pub struct WeightsFormat {
    rules: Vec<(Option<Pattern>, Format)>,
}

impl WeightsFormat {
    /// How the matrix `name` is kept.
    pub fn of(&self, name: &str) -> Format {
        let matching = |(pattern, _): &&(Option<Pattern>, Format)| pattern.as_ref().is_none_or(|p| p.matches(name));
        self.rules.iter().rev().find(matching).map_or(Format::Auto, |(_, format)| *format)
    }
}

impl FromStr for WeightsFormat {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let rule = |rule: &str| {
            let (pattern, name) = rule.rsplit_once('=').map_or((None, rule), |(pattern, name)| (Some(pattern), name));
            let Some((_, format)) = NAMES.iter().find(|(known, _)| *known == name) else {
                return Err(format!("{name:?} is no format: must be [PATTERN=]auto, dense or bitmap"));
            };
            let glob = |pattern| Pattern::new(pattern).map_err(|e| format!("{pattern:?}: {e}"));
            Ok((pattern.map(glob).transpose()?, *format))
        };
        Ok(WeightsFormat { rules: text.split(',').map(rule).collect::<std::result::Result<_, _>>()? })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _) = NAMES.iter().find(|(_, format)| format == self).expect("every format has a name");
        f.pad(name)
    }
}

impl fmt::Display for WeightsFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rules.is_empty() {
            return Format::Auto.fmt(f);
        }
        for (i, (pattern, format)) in self.rules.iter().enumerate() {
            let pattern = pattern.as_ref().map_or(String::new(), |p| format!("{p}="));
            write!(f, "{}{pattern}{format}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Format {
    /// `weight` in this format, unless it is already.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn apply(self, weight: &Weight, compute: &Compute) -> Result<Option<Weight>> {
        Ok(match (weight, self.prefers_bitmap(weight)) {
            (Weight::Dense(tensor), true) => Some(BitmapTensor::pack(tensor, compute)?.into()),
            (Weight::Bitmap(tensor), false) => Some(tensor.unpack(compute)?.into()),
            _ => None,
        })
    }

    /// Whether `weight` should be a bitmap.
    pub fn prefers_bitmap(self, weight: &Weight) -> bool {
        BitmapParts::supports(weight.dtype())
            && match self {
                Format::Dense => false,
                Format::Bitmap => true,
                Format::Auto => density(weight) < BitmapParts::pays_below(weight.dtype()),
            }
    }
}

/// The fraction of elements that are not zero, in a sample of the rows: scattered ones, since zeros may follow a pattern.
fn density(weight: &Weight) -> f64 {
    const SAMPLE: usize = 32;
    let (rows, mut row) = (weight.rows(), vec![0.0; weight.cols()]);
    let (mut stored, mut all) = (0, 0);
    for i in 0..SAMPLE.min(rows) {
        // Multiples of the golden ratio, less their whole parts, are evenly spread.
        let at = (i as f64 * 0.618_033_988_749_895).fract() * rows as f64;
        weight.decode(at as usize..at as usize + 1, &mut row);
        stored += row.iter().filter(|v| **v != 0.0).count();
        all += row.len();
    }
    stored as f64 / all.max(1) as f64
}
