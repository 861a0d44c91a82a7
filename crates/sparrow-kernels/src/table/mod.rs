//! The table of kernels of each tier.
//!
//! A tier is the one below it with the kernels it improves replaced, so a new kernel is one line here. The only source
//! of a table is [`Kernels::all`], which gives it out only if the CPU has what it uses: safe code cannot call a kernel
//! that the CPU cannot run.

mod kernels;
mod scalar;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use crate::cpu::{self, Isa};
#[cfg(target_arch = "x86_64")]
use amx::AMX;
#[cfg(target_arch = "x86_64")]
use avx2::{AVX2, AVX2_VNNI};
#[cfg(target_arch = "x86_64")]
use avx512::{AVX512, AVX512_BF16, AVX512_VBMI2, AVX512_VNNI};
pub(crate) use kernels::Kernels;
use scalar::SCALAR;

/// A table, with whether this CPU has what it uses beyond its tier.
type Table = (&'static Kernels, fn() -> bool);

/// Every table, of one tier the best first.
#[cfg(target_arch = "x86_64")]
const TABLES: [Table; 8] = [
    (&SCALAR, || true),
    (&AVX2_VNNI, cpu::has_avx_vnni),
    (&AVX2, || true),
    (&AVX512_VBMI2, || cpu::has_vnni() && cpu::has_vbmi2()),
    (&AVX512_VNNI, cpu::has_vnni),
    (&AVX512, || true),
    (&AVX512_BF16, || true),
    (&AMX, || true),
];
#[cfg(not(target_arch = "x86_64"))]
const TABLES: [Table; 1] = [(&SCALAR, || true)];

impl Kernels {
    /// The best table of a tier, if this CPU has it.
    pub(crate) fn select(isa: Isa) -> Option<&'static Kernels> {
        Self::all().find(|kernels| kernels.isa == isa)
    }

    /// Every table that this CPU can run, of one tier the best first.
    pub(crate) fn all() -> impl Iterator<Item = &'static Kernels> {
        TABLES
            .into_iter()
            .filter(|(kernels, has)| cpu::missing(kernels.isa).is_none() && has())
            .map(|(kernels, _)| kernels)
    }
}
