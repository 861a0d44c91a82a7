//! What the CPU can run: detection of instruction set tiers, and the `SPARROW_ISA` cap.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// An instruction set tier. Each contains the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Portable Rust, the reference every other tier is tested against.
    Scalar,
    /// AVX2, FMA, F16C and POPCNT; with AVX-VNNI products of quantised weights with many activations use it.
    Avx2,
    /// AVX-512 F, BW, VL and DQ; with VNNI products of quantised weights use it, with VBMI2 too bitmaps.
    Avx512,
    /// [`Isa::Avx512`], AVX512-BF16, AVX512-VNNI and AVX512-VBMI2. Chosen where VDPBF16PS does more than products of `f32`
    /// do: on AMD's CPUs twice as much, on Intel's half.
    Avx512Bf16,
    /// [`Isa::Avx512Bf16`], AMX-TILE, AMX-BF16 and AMX-INT8, with the kernel's permission to use tile state.
    Amx,
}

impl Isa {
    /// Every tier, lowest first.
    pub const ALL: [Isa; 5] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx];

    /// The name: `scalar`, `avx2`, `avx512`, `avx512bf16` or `amx`.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
        }
    }

    /// The highest tier this CPU has, capped by the environment variable `SPARROW_ISA`; [`Isa::Avx512Bf16`] only where it is
    /// faster than [`Isa::Avx512`], or asked for.
    ///
    /// # Panics
    /// If `SPARROW_ISA` is set and names no tier.
    pub fn best() -> Isa {
        let cap = cap_from_environment().unwrap_or_else(|e| panic!("SPARROW_ISA: {e}"));
        let best = Isa::ALL.into_iter().rev().find(|&isa| isa <= cap && missing(isa).is_none() && pays(isa, cap));
        best.unwrap_or(Isa::Scalar)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no [`Isa`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownIsa(pub String);

impl fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown instruction set {:?}: expected scalar, avx2, avx512, avx512bf16 or amx", self.0)
    }
}

impl std::error::Error for UnknownIsa {}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        let lower = name.to_ascii_lowercase();
        Isa::ALL.into_iter().find(|isa| isa.name() == lower).ok_or_else(|| UnknownIsa(name.to_string()))
    }
}

/// The tier asked for cannot run on this CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsaUnavailable {
    /// The tier asked for.
    pub isa: Isa,
    /// What is missing.
    pub reason: String,
}

impl fmt::Display for IsaUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {} tier is not available: {}", self.isa, self.reason)
    }
}

impl std::error::Error for IsaUnavailable {}

/// Whether one tier can run here, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierStatus {
    /// The tier.
    pub isa: Isa,
    /// Whether [`Compute::new`](crate::Compute::new) may choose it.
    pub available: bool,
    /// What was found, or what is missing, in a few words.
    pub reason: String,
}

/// The state of every tier, lowest first; `SPARROW_ISA` counts.
pub fn tiers() -> Vec<TierStatus> {
    let cap = cap_from_environment();
    let status = |isa: Isa| {
        if let Some(reason) = missing(isa) {
            return (false, reason);
        }
        match &cap {
            Ok(cap) if isa > *cap => (false, format!("capped by SPARROW_ISA={cap}")),
            Err(e) => (false, format!("SPARROW_ISA: {e}")),
            Ok(cap) if !pays(isa, *cap) => {
                (false, format!("this CPU multiplies bf16 no faster than f32; SPARROW_ISA={isa} takes it all the same"))
            }
            Ok(_) => (true, ["detected"].into_iter().chain(beyond(isa)).collect::<Vec<_>>().join(", ")),
        }
    };
    Isa::ALL
        .into_iter()
        .map(|isa| {
            let (available, reason) = status(isa);
            TierStatus { isa, available, reason }
        })
        .collect()
}

fn cap_from_environment() -> Result<Isa, UnknownIsa> {
    match std::env::var("SPARROW_ISA") {
        Ok(name) if !name.is_empty() => name.parse(),
        _ => Ok(Isa::Amx),
    }
}

/// What `isa` lacks on this CPU; `None` if it can run. Detected once per process; asks for AMX permission then.
pub(crate) fn missing(isa: Isa) -> Option<String> {
    static MISSING: OnceLock<[Option<String>; 5]> = OnceLock::new();
    MISSING.get_or_init(|| {
        let avx2 = detect::missing_avx2();
        let avx512 = avx2.clone().or_else(detect::missing_avx512);
        let bf16 = avx512.clone().or_else(detect::missing_avx512_bf16);
        let amx = bf16.clone().or_else(detect::missing_amx);
        [None, avx2, avx512, bf16, amx]
    })[isa as usize]
        .clone()
}

/// Whether a tier that the CPU has is worth choosing under `cap`.
fn pays(isa: Isa, cap: Isa) -> bool {
    isa != Isa::Avx512Bf16 || cap == isa || detect::multiplies_bf16_fast()
}

/// What the CPU has of what a tier uses but does not need.
fn beyond(isa: Isa) -> Vec<&'static str> {
    let features = match isa {
        Isa::Avx2 => vec![("with AVX-VNNI", has_avx_vnni())],
        Isa::Avx512 => vec![("with VNNI", has_vnni()), ("with VBMI2", has_vnni() && has_vbmi2())],
        _ => Vec::new(),
    };
    features.into_iter().filter(|&(_, present)| present).map(|(name, _)| name).collect()
}

/// Whether the CPU has AVX-VNNI, which the AVX2 tier uses but does not need.
pub(crate) fn has_avx_vnni() -> bool {
    detect::avx_vnni()
}

/// Whether the CPU has AVX512-VNNI, which the AVX-512 tier uses but does not need.
pub(crate) fn has_vnni() -> bool {
    detect::avx512_vnni()
}

/// Whether the CPU has AVX512-VBMI2, which the AVX-512 tier uses with VNNI but does not need.
pub(crate) fn has_vbmi2() -> bool {
    detect::avx512_vbmi2()
}

#[cfg(target_arch = "x86_64")]
mod detect {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    fn list_missing(features: &[(&str, bool)]) -> Option<String> {
        let absent: Vec<&str> = features.iter().filter(|(_, present)| !present).map(|&(name, _)| name).collect();
        if absent.is_empty() { None } else { Some(format!("the CPU lacks {}", absent.join(", "))) }
    }

    pub(super) fn avx_vnni() -> bool {
        is_x86_feature_detected!("avxvnni")
    }

    pub(super) fn avx512_vnni() -> bool {
        is_x86_feature_detected!("avx512vnni")
    }

    pub(super) fn avx512_vbmi2() -> bool {
        is_x86_feature_detected!("avx512vbmi2")
    }

    pub(super) fn missing_avx2() -> Option<String> {
        list_missing(&[
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("popcnt", is_x86_feature_detected!("popcnt")),
        ])
    }

    pub(super) fn missing_avx512() -> Option<String> {
        list_missing(&[
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ])
    }

    pub(super) fn missing_avx512_bf16() -> Option<String> {
        list_missing(&[
            ("avx512_bf16", is_x86_feature_detected!("avx512bf16")),
            ("avx512_vnni", avx512_vnni()),
            ("avx512_vbmi2", avx512_vbmi2()),
        ])
    }

    /// Intel's CPUs start a VDPBF16PS every second cycle, and two products of `f32` in each; AMD's one of either in each.
    pub(super) fn multiplies_bf16_fast() -> bool {
        let vendor = __cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
    }

    /// CPUID leaf 7 names the AMX features, XCR0 bits 17 and 18 say that the system saves tile state, and Linux (since
    /// 5.16) wants each process to ask before its first tile instruction.
    pub(super) fn missing_amx() -> Option<String> {
        if __cpuid(0).eax < 7 {
            return Some("the CPU lacks CPUID leaf 7".to_string());
        }
        let edx = __cpuid_count(7, 0).edx;
        let absent = list_missing(&[
            ("amx_bf16", edx & (1 << 22) != 0),
            ("amx_tile", edx & (1 << 24) != 0),
            ("amx_int8", edx & (1 << 25) != 0),
        ]);
        if absent.is_some() {
            return absent;
        }
        const TILE_STATE: u64 = 0b11 << 17;
        // SAFETY: AVX is detected (the AVX2 tier was checked before), so the system has enabled XGETBV.
        let enabled = unsafe { read_xcr0() };
        if enabled & TILE_STATE != TILE_STATE {
            return Some("the system does not save AMX tile state (XCR0)".to_string());
        }
        request_tile_permission()
    }

    /// Extended control register 0.
    ///
    /// # Safety
    /// The system must have set CR4.OSXSAVE.
    unsafe fn read_xcr0() -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: the caller guarantees OSXSAVE; XGETBV with ECX = 0 only reads a register.
        unsafe {
            std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
                options(nomem, nostack, preserves_flags));
        }
        u64::from(low) | u64::from(high) << 32
    }

    #[cfg(target_os = "linux")]
    fn request_tile_permission() -> Option<String> {
        const SYS_ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
        const XFEATURE_XTILEDATA: i64 = 18;
        let result: i64;
        // SAFETY: this system call takes two integers and touches no memory of the process; syscall clobbers rcx and
        // r11.
        unsafe {
            std::arch::asm!("syscall",
                inlateout("rax") SYS_ARCH_PRCTL => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                out("rcx") _, out("r11") _, options(nostack));
        }
        if result == 0 { None } else { Some(format!("Linux refuses AMX tile state (arch_prctl: error {})", -result)) }
    }

    #[cfg(not(target_os = "linux"))]
    fn request_tile_permission() -> Option<String> {
        Some("AMX is only used on Linux".to_string())
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod detect {
    fn not_x86() -> Option<String> {
        Some(format!("not on {}", std::env::consts::ARCH))
    }
    pub(super) fn missing_avx2() -> Option<String> {
        not_x86()
    }
    pub(super) fn missing_avx512() -> Option<String> {
        not_x86()
    }
    pub(super) fn missing_avx512_bf16() -> Option<String> {
        not_x86()
    }
    pub(super) fn missing_amx() -> Option<String> {
        not_x86()
    }
    pub(super) fn multiplies_bf16_fast() -> bool {
        false
    }
    pub(super) fn avx_vnni() -> bool {
        false
    }
    pub(super) fn avx512_vnni() -> bool {
        false
    }
    pub(super) fn avx512_vbmi2() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_tiers_are_ordered() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        assert!(Isa::ALL.is_sorted());
        assert!("sse9".parse::<Isa>().is_err());
    }

    #[test]
    fn scalar_is_always_there_and_tiers_nest() {
        assert_eq!(missing(Isa::Scalar), None);
        for pair in Isa::ALL.windows(2) {
            assert!(missing(pair[1]).is_some() || missing(pair[0]).is_none());
        }
    }
}
