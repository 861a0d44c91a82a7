//! Matrices as lists of rows.

/// A matrix, row by row.
pub type Rows = Vec<Vec<f64>>;
