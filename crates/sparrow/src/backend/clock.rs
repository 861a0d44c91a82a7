//! Where the time of a step goes, by component; off unless asked for.

use std::time::Instant;

/// A part of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Component {
    /// Rows of the embedding; cosines and sines of the positions.
    Embed,
    /// Every norm and residual add.
    Norm,
    /// Query, key and value projections.
    Qkv,
    /// Rotary embedding, and storing keys and values.
    Rope,
    /// Scores, softmax and values.
    Attention,
    /// The attention's output projection.
    Output,
    /// Computing the scores that a selector decides by: the exact gate, or the predictor.
    Scores,
    /// Thresholds, masks, union and ids.
    Threshold,
    /// Gate, up, activation and down of the active neurons, one fused region.
    SparseMlp,
    /// Gate and up projections of all neurons.
    GateUp,
    /// The activation, and zeroing of inactive neurons.
    Activation,
    /// Down projection of all neurons.
    Down,
    /// Pruning and packing cached keys and values.
    Pack,
    /// The head.
    Head,
}

impl Component {
    const ALL: [Component; 14] = {
        use Component::*;
        [Embed, Norm, Qkv, Rope, Attention, Output, Scores, Threshold, SparseMlp, GateUp, Activation, Down, Pack, Head]
    };

    /// Those of a layer's attention, without its norms.
    pub const OF_ATTENTION: [Component; 5] =
        [Component::Qkv, Component::Rope, Component::Attention, Component::Output, Component::Pack];

    /// Those of a layer's MLP, without its norms.
    pub const OF_MLP: [Component; 6] = [
        Component::Scores,
        Component::Threshold,
        Component::SparseMlp,
        Component::GateUp,
        Component::Activation,
        Component::Down,
    ];

    /// Its name in a report.
    pub fn name(self) -> &'static str {
        match self {
            Component::Embed => "embed",
            Component::Norm => "norm",
            Component::Qkv => "qkv",
            Component::Rope => "rope",
            Component::Attention => "attention",
            Component::Output => "o",
            Component::Scores => "scores",
            Component::Threshold => "threshold",
            Component::SparseMlp => "sparse mlp",
            Component::GateUp => "gate+up",
            Component::Activation => "activation",
            Component::Down => "down",
            Component::Pack => "pack kv",
            Component::Head => "lm_head",
        }
    }
}

/// Seconds per step of one component, over the steps profiled.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Timing {
    /// Average.
    pub mean: f64,
    /// Standard deviation.
    pub std: f64,
    /// Shortest.
    pub min: f64,
    /// Longest.
    pub max: f64,
}

impl Timing {
    /// Statistics of a list of durations; zeros for an empty one.
    pub fn of(seconds: &[f64]) -> Self {
        let n = seconds.len().max(1) as f64;
        let mean = seconds.iter().sum::<f64>() / n;
        let variance = seconds.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n;
        let min = seconds.iter().copied().reduce(f64::min).unwrap_or(0.0);
        Timing { mean, std: variance.sqrt(), min, max: seconds.iter().copied().fold(0.0, f64::max) }
    }
}

/// Adds up the time between laps by component.
#[derive(Debug, Default)]
pub struct Clock {
    /// Set while profiling: the end of the last lap.
    last: Option<Instant>,
    step: [f64; Component::ALL.len()],
    steps: Vec<[f64; Component::ALL.len()]>,
}

impl Clock {
    /// Starts profiling anew.
    pub fn start(&mut self) {
        *self = Clock { last: Some(Instant::now()), ..Clock::default() };
    }

    /// What ran since the last lap was `component`.
    #[inline]
    pub fn lap(&mut self, component: Component) {
        if let Some(last) = &mut self.last {
            let now = Instant::now();
            self.step[component as usize] += (now - *last).as_secs_f64();
            *last = now;
        }
    }

    /// A step begins: what ran since the last one was none of its components.
    pub fn begin_step(&mut self) {
        if let Some(last) = &mut self.last {
            *last = Instant::now();
        }
    }

    /// A step is complete.
    pub fn end_step(&mut self) {
        if self.last.is_some() {
            self.steps.push(std::mem::take(&mut self.step));
        }
    }

    /// Times of the components that took any.
    pub fn report(&self) -> Vec<(Component, Timing)> {
        let timing = |c: Component| {
            let seconds: Vec<f64> = self.steps.iter().map(|step| step[c as usize]).collect();
            (c, Timing::of(&seconds))
        };
        Component::ALL.into_iter().map(timing).filter(|(_, t)| t.max > 0.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_in_order_and_statistics_right() {
        assert!(Component::ALL.iter().enumerate().all(|(i, &c)| c as usize == i));
        let parts = [&Component::OF_ATTENTION[..], &Component::OF_MLP].concat();
        let others = Component::ALL.into_iter().filter(|component| !parts.contains(component));
        assert_eq!(others.collect::<Vec<_>>(), [Component::Embed, Component::Norm, Component::Head]);
        let t = Timing::of(&[1.0, 3.0]);
        assert_eq!((t.mean, t.std, t.min, t.max), (2.0, 1.0, 1.0, 3.0));
    }

    #[test]
    fn an_idle_clock_counts_nothing() {
        let mut clock = Clock::default();
        clock.lap(Component::Norm);
        clock.end_step();
        assert!(clock.report().is_empty());
        clock.start();
        clock.lap(Component::Norm);
        clock.end_step();
        assert_eq!(clock.report().len(), 1);
    }
}
