//! Probes of the AMX tile unit, in assembly: its intrinsics are not stable yet.

use std::arch::asm;

/// The 64-byte operand of LDTILECFG: palette 1, eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static FULL_TILES: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Runs a loop of four independent tile products.
macro_rules! peak_loop {
    ($steps:expr, $product:literal) => {
        asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
            "2:",
            concat!($product, " tmm0, tmm4, tmm6"),
            concat!($product, " tmm1, tmm4, tmm7"),
            concat!($product, " tmm2, tmm5, tmm6"),
            concat!($product, " tmm3, tmm5, tmm7"),
            "dec {steps}",
            "jnz 2b",
            "tilerelease",
            config = in(reg) &raw const FULL_TILES,
            steps = inout(reg) $steps.max(1) => _,
            options(nostack, readonly)
        )
    };
}

/// `steps` steps of four products of 16×32 by 32×16 bf16; returns the operations done.
///
/// # Safety
/// The CPU must have AMX-TILE and AMX-BF16, and the process the permission to use tile state. No caller may keep anything in
/// tiles.
pub(super) unsafe fn peak_bf16_amx(steps: usize) -> f64 {
    // SAFETY: the caller guarantees AMX; the tiles are configured and released inside, and the compiler never uses them.
    unsafe { peak_loop!(steps, "tdpbf16ps") };
    (2 * 16 * 16 * 32 * 4 * steps) as f64
}

/// `steps` steps of four products of 16×64 by 64×16 int8; returns the operations done.
///
/// # Safety
/// The CPU must have AMX-TILE and AMX-INT8, and the process the permission to use tile state. No caller may keep anything in
/// tiles.
pub(super) unsafe fn peak_int8_amx(steps: usize) -> f64 {
    // SAFETY: the caller guarantees AMX; the tiles are configured and released inside, and the compiler never uses them.
    unsafe { peak_loop!(steps, "tdpbssd") };
    (2 * 16 * 16 * 64 * 4 * steps) as f64
}
