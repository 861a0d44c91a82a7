//! Seeing a model at work: calibration and quality measurements.

use super::selection::Selection;

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

/// Sees what a model computes.
pub trait Observer {
    /// The activations of `m` rows at a point of a layer.
    fn see(&mut self, _layer: usize, _point: Point, _values: &[f32], _m: usize) {}

    /// The MLP's input `h`, `[m, hidden]`; `selection` is absent where every neuron counts.
    fn mlp(&mut self, _layer: usize, _h: &[f32], _m: usize, _selection: Option<&Selection>) {}
}

/// Nobody looks.
impl Observer for () {}

/// One who may be there.
impl<T: Observer> Observer for Option<T> {
    fn see(&mut self, layer: usize, point: Point, values: &[f32], m: usize) {
        if let Some(observer) = self {
            observer.see(layer, point, values, m);
        }
    }

    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, selection: Option<&Selection>) {
        if let Some(observer) = self {
            observer.mlp(layer, h, m, selection);
        }
    }
}

/// Two who both look.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn see(&mut self, layer: usize, point: Point, values: &[f32], m: usize) {
        self.0.see(layer, point, values, m);
        self.1.see(layer, point, values, m);
    }

    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, selection: Option<&Selection>) {
        self.0.mlp(layer, h, m, selection);
        self.1.mlp(layer, h, m, selection);
    }
}
