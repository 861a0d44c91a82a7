//! What the project's own tools, benchmarks and tests need beyond the public face. No promise of stability.

/// See `spec/`.
pub mod spec {
    pub use crate::spec::*;
}
/// See `tensor/`.
pub mod tensor {
    pub use crate::tensor::*;
}
/// See `weights/`.
pub mod weights {
    pub use crate::weights::*;
}
/// See `checkpoint/`.
pub mod checkpoint {
    pub use crate::checkpoint::*;
}
/// See `residency/`.
pub mod residency {
    pub use crate::residency::*;
}
/// See `backend/`.
pub mod backend {
    pub use crate::backend::*;
}
/// See `select/`.
pub mod select {
    pub use crate::backend::Threshold;
    pub use crate::select::*;
}
/// See `record/`.
pub mod record {
    pub use crate::record::*;
}
/// See `run/`.
pub mod run {
    pub use crate::run::*;
}
/// See `text/`.
pub mod text {
    pub use crate::text::*;
}
