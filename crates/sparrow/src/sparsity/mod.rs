//! Which neurons a token needs: selectors, thresholds, predictors, and what calibration observes. Opens no file.

mod observe;
mod predictor;
mod selector;
mod sidecar;
mod threshold;

pub(crate) use observe::{ActiveScores, Moments, deciding};
pub use observe::{PredictorQuality, Recall};
pub use predictor::Predictor;
pub use selector::{Observer, Selection, Selector, SelectorSpec, is_relu_family};
pub use sidecar::{CalibrationText, Quality, Sidecar, SidecarFile};
pub use threshold::Threshold;
