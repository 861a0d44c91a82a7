//! The projections of a decoder layer, for what is decided for each by itself.

use serde::{Deserialize, Serialize};

use super::threshold::Threshold;

/// A projection of a decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(usize)]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention's output.
    O,
    /// The MLP's gate.
    Gate,
    /// The MLP's up projection.
    Up,
    /// The MLP's down projection.
    Down,
}

impl Projection {
    /// All of them, in the order of thresholds.
    pub const ALL: [Projection; 7] = {
        use Projection::*;
        [Q, K, V, O, Gate, Up, Down]
    };
}

/// Rules for the magnitudes of a layer's inputs, by [`Projection`].
pub type InputRules = [Threshold; 7];
