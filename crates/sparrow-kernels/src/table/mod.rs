//! The table of kernels of each tier.
//!
//! A tier is the one below it with the kernels it improves replaced, so a new kernel is one line here. The only source
//! of a table is [`Kernels::select`], which gives it out only if the CPU has the tier: safe code cannot call a kernel
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
use avx2::AVX2;
#[cfg(target_arch = "x86_64")]
use avx512::{AVX512, AVX512_BF16, AVX512_VBMI2, AVX512_VNNI};
pub(crate) use kernels::Kernels;
use scalar::SCALAR;

impl Kernels {
    /// The kernels of a tier, if this CPU has it.
    pub(crate) fn select(isa: Isa) -> Option<&'static Kernels> {
        if cpu::missing(isa).is_some() {
            return None;
        }
        #[cfg(target_arch = "x86_64")]
        return Some(match isa {
            Isa::Scalar => &SCALAR,
            Isa::Avx2 => &AVX2,
            Isa::Avx512 if cpu::has_vnni() && cpu::has_vbmi2() => &AVX512_VBMI2,
            Isa::Avx512 if cpu::has_vnni() => &AVX512_VNNI,
            Isa::Avx512 => &AVX512,
            Isa::Avx512Bf16 => &AVX512_BF16,
            Isa::Amx => &AMX,
        });
        #[cfg(not(target_arch = "x86_64"))]
        Some(&SCALAR)
    }
}
