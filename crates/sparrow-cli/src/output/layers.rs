//! What differs from layer to layer, on one line.

use super::units::percent;

/// `--layers`.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Output")]
pub struct LayersArg {
    /// Also print a table with a row for every layer
    #[arg(long)]
    pub layers: bool,
}

/// A small bar for each layer's fraction, from the least to the most; none where layers do not differ.
pub fn by_layer(fractions: &[f64]) -> Option<String> {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let least = fractions.iter().copied().fold(f64::INFINITY, f64::min);
    let most = fractions.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = (percent(least), percent(most));
    if fractions.is_empty() || low == high {
        return None;
    }
    let bar = |&fraction: &f64| BARS[((fraction - least) / (most - least) * 7.0).round() as usize];
    Some(format!("{}  {low} to {high}", fractions.iter().map(bar).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_show_differences() {
        assert_eq!(by_layer(&[0.1, 0.5, 0.8]).unwrap(), "▁▅█  10.0 % to 80.0 %");
        assert_eq!(by_layer(&[0.5, 0.5, 0.500_01]), None);
        assert_eq!(by_layer(&[]), None);
    }
}
