//! Probes of the AMX tile unit, in assembly: its intrinsics are not stable yet.

use crate::simd::amx::{load_tile_config, release_tiles};
use std::arch::asm;

/// One tile of ordinary numbers: bf16 of magnitude 1 to 2 and both signs, read as int8 by the other loop. A peak
/// measured on zeros might not hold for anything else.
static OPERAND: [u16; 512] = {
    let mut values = [0; 512];
    let mut i = 0;
    while i < 512 {
        values[i] = 0x3f80 | (i * 37 % 128) as u16 | ((i * 7 / 3 % 2) as u16) << 15;
        i += 1;
    }
    values
};

/// Runs a loop of four independent tile products.
macro_rules! peak_loop {
    ($steps:expr, $product:literal) => {{
        load_tile_config();
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "tileloadd tmm4, [{operand} + {stride}]", "tileloadd tmm5, [{operand} + {stride}]",
            "tileloadd tmm6, [{operand} + {stride}]", "tileloadd tmm7, [{operand} + {stride}]",
            "2:",
            concat!($product, " tmm0, tmm4, tmm6"),
            concat!($product, " tmm1, tmm4, tmm7"),
            concat!($product, " tmm2, tmm5, tmm6"),
            concat!($product, " tmm3, tmm5, tmm7"),
            "dec {steps}",
            "jnz 2b",
            steps = inout(reg) $steps.max(1) => _,
            operand = in(reg) OPERAND.as_ptr(),
            stride = in(reg) 64usize,
            options(nostack, readonly)
        );
        release_tiles();
    }};
}

/// `steps` steps of four products of 16×32 by 32×16 bf16; returns the operations done.
///
/// # Safety
/// The CPU must have AMX-TILE and AMX-BF16, and the process the permission to use tile state. No caller may keep
/// anything in tiles.
pub(crate) unsafe fn peak_bf16_amx(steps: usize) -> f64 {
    // SAFETY: the caller guarantees AMX; the tiles are configured and released inside, and the compiler never uses
    // them.
    unsafe { peak_loop!(steps, "tdpbf16ps") };
    (2 * 16 * 16 * 32 * 4 * steps) as f64
}

/// `steps` steps of four products of 16×64 by 64×16 int8; returns the operations done, of which activations of two bytes
/// need two each.
///
/// # Safety
/// The CPU must have AMX-TILE and AMX-INT8, and the process the permission to use tile state. No caller may keep
/// anything in tiles.
pub(crate) unsafe fn peak_int8_amx(steps: usize) -> f64 {
    // SAFETY: the caller guarantees AMX; the tiles are configured and released inside, and the compiler never uses
    // them.
    unsafe { peak_loop!(steps, "tdpbssd") };
    (16 * 16 * 64 * 4 * steps) as f64
}
