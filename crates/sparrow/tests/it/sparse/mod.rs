//! What selectors leave out.

mod gate;
mod selectors;
mod thresholds;
