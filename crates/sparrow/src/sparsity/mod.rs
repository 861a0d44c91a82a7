//! Which parts of a model a token needs: selectors, thresholds, predictors, and what calibration observes. Opens no file.

pub(crate) mod calibrate;
mod forced;
mod input;
mod observe;
mod observer;
mod predictor;
mod selection;
mod selector;
mod sidecar;
mod sign;
mod skip;
mod spec;
mod threshold;
mod weight_cache;

pub use calibrate::ScoreCurve;
pub(crate) use input::ActiveInputs;
pub use input::{InputThresholds, Projection};
pub(crate) use observe::deciding;
pub use observe::{Overlap, PredictorQuality, Recall};
pub use observer::{Observer, Point};
pub use predictor::{InputMoments, Predictor};
pub use selection::Selection;
pub use selector::{Selector, is_relu_family};
pub use sidecar::{CalibrationText, Method, Quality, Sidecar, SidecarFile, Trial};
pub use sign::SignBits;
pub use skip::SkippedBlocks;
pub use spec::SelectorSpec;
pub use threshold::Threshold;
pub(crate) use weight_cache::ones;
pub use weight_cache::{CacheSpec, Load, Pass, Policy, Traffic, WeightCache};
