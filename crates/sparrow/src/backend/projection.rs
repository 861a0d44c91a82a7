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

    /// The number of its site: projections that have the same input share one.
    pub const fn site(self) -> usize {
        use Projection::*;
        match self {
            Q | K | V => 0,
            O => 1,
            Gate | Up => 2,
            Down => 3,
        }
    }
}

/// Rules for the magnitudes of a layer's inputs, by [`Projection`].
pub type InputRules = [Threshold; 7];

/// What the magnitudes of a layer's inputs are multiplied with before they are compared, by [`Projection::site`].
pub type InputNorms = [Vec<f32>; 4];

/// Which inputs of a layer's projections are left out.
#[derive(Debug, Clone, Copy)]
pub struct InputSelection<'a> {
    /// Those that are not above these thresholds.
    pub rules: &'a InputRules,
    /// Weighted so; none: as they are.
    pub norms: Option<&'a InputNorms>,
}

impl<'a> InputSelection<'a> {
    /// The rule for the inputs of a projection, and what their magnitudes are multiplied with.
    pub fn of(&self, projection: Projection) -> (Threshold, Option<&'a [f32]>) {
        (self.rules[projection as usize], self.norms.map(|norms| norms[projection.site()].as_slice()))
    }
}
