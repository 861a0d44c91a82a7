//! The kernels of every tier that this CPU has, each against a reference in `f64`, sets or big integers.
//!
//! Tolerances are those that the operations document. A tier that the CPU lacks prints `skipped: needs <tier>`;
//! `SPARROW_REQUIRE_ISA=<tier>` turns that into a failure.

// References index several arrays by the same number.
#![allow(clippy::needless_range_loop)]

mod attention;
mod bitmap;
mod blocks;
mod elementwise;
#[cfg(unix)]
mod guard;
mod integer;
mod kv_copies;
mod linear;
mod selection;
mod sparse_kv;
mod sparse_mlp;
mod store;
mod stored;
mod support;
