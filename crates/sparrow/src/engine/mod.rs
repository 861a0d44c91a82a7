//! What serves many requests at once.

pub mod scheduler;
