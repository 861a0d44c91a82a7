//! What changed weights cost.

use serde::{Deserialize, Serialize};
use sparrow::internals::record::Evaluation;

/// Measured cost; `dense` stands for the model before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeasuredQuality {
    /// On which text.
    pub text: String,
    /// Perplexity, KL divergence and agreement.
    #[serde(flatten)]
    pub evaluation: Evaluation,
}
