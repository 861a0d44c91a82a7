//! Seeing a model at work: calibration and quality measurements.

/// A place in a decoder layer where activations can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The residual stream before the attention block, `[m, hidden]`; also seen once for the layer after the last.
    Residual,
    /// The input of queries, keys and values, `[m, hidden]`.
    AttentionInput,
    /// The input of attention's output projection, `[m, heads · head_dim]`.
    Attended,
    /// The residual stream between attention and MLP, `[m, hidden]`.
    MiddleResidual,
    /// The input of the down projection where all neurons were computed, `[m, intermediate]`.
    Neurons,
}

/// Which neurons of a layer count for each row of a step.
#[derive(Debug, Clone, Copy)]
pub struct ActiveNeurons<'a> {
    /// One bitmap per row, `[m, ceil(neurons / 64)]`: bit `i` says that neuron `i` counts for the row.
    pub masks: &'a [u64],
    /// Neurons of the layer.
    pub neurons: usize,
}

impl ActiveNeurons<'_> {
    /// Whether neuron `i` counts for row `r`.
    pub fn contains(&self, r: usize, i: usize) -> bool {
        self.masks[r * self.neurons.div_ceil(64) + i / 64] >> (i % 64) & 1 == 1
    }
}

/// Sees what a model computes. A backend whose activations are not in this process's memory copies them only for an observer
/// that [watches](Self::watches).
pub trait Observer {
    /// Whether anything is to be shown at all.
    fn watches(&self) -> bool {
        true
    }

    /// The activations of `m` rows at a point of a layer.
    fn see(&mut self, _layer: usize, _point: Point, _values: &[f32], _m: usize) {}

    /// The MLP's input `h`, `[m, hidden]`; `active` is absent where every neuron counts.
    fn mlp(&mut self, _layer: usize, _h: &[f32], _m: usize, _active: Option<ActiveNeurons>) {}
}

/// Sees nothing.
impl Observer for () {
    fn watches(&self) -> bool {
        false
    }
}

/// An observer that may be absent.
impl<T: Observer> Observer for Option<T> {
    fn watches(&self) -> bool {
        self.as_ref().is_some_and(T::watches)
    }

    fn see(&mut self, layer: usize, point: Point, values: &[f32], m: usize) {
        if let Some(observer) = self {
            observer.see(layer, point, values, m);
        }
    }

    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, active: Option<ActiveNeurons>) {
        if let Some(observer) = self {
            observer.mlp(layer, h, m, active);
        }
    }
}

/// Two observers of the same run.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn watches(&self) -> bool {
        self.0.watches() || self.1.watches()
    }

    fn see(&mut self, layer: usize, point: Point, values: &[f32], m: usize) {
        self.0.see(layer, point, values, m);
        self.1.see(layer, point, values, m);
    }

    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, active: Option<ActiveNeurons>) {
        self.0.mlp(layer, h, m, active);
        self.1.mlp(layer, h, m, active);
    }
}
