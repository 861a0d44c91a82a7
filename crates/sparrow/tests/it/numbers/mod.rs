//! What is computed, against other ways to compute it.

mod backend;
mod bitmaps;
mod bits;
mod goldens;
mod reference;
