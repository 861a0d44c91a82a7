//! The configuration of AMX tiles.

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

/// Makes all eight tiles of this thread full ones, 16 rows of 64 bytes, of zeros.
///
/// # Safety
/// The CPU must have AMX-TILE, and the process the permission to use tile state. No caller may keep anything in tiles.
#[inline]
pub(crate) unsafe fn load_tile_config() {
    // SAFETY: the caller guarantees AMX; the compiler never uses tiles.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const FULL_TILES, options(nostack, readonly)) };
}

/// Returns the tiles of this thread to their initial state, so that nothing has to save them.
///
/// # Safety
/// As [`load_tile_config`].
#[inline]
pub(crate) unsafe fn release_tiles() {
    // SAFETY: the caller guarantees AMX.
    unsafe { asm!("tilerelease", options(nomem, nostack)) };
}

/// Adds the products of two tiles of `a` with two of `b` per step to 2 × 2 tiles of sums, or sets them: a step is two
/// tiles of each. `$product` is the instruction that multiplies two tiles.
macro_rules! multiply_tiles {
    ($product:literal, $a:expr, $b:expr, $steps:expr, $first:expr, $sums:expr) => {{
        use std::arch::asm;
        if $first {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nomem, nostack));
        } else {
            asm!(
                "tileloadd tmm0, [{c} + {row}]",
                "tileloadd tmm1, [{c} + {row} + 1024]",
                "tileloadd tmm2, [{c} + {row} + 2048]",
                "tileloadd tmm3, [{c} + {row} + 3072]",
                c = in(reg) $sums, row = in(reg) 64usize, options(nostack, readonly)
            );
        }
        asm!(
            "2:",
            "tileloadd tmm6, [{b} + {row}]",
            "tileloadd tmm4, [{a} + {row}]",
            "tileloadd tmm7, [{b} + {row} + 1024]",
            "tileloadd tmm5, [{a} + {row} + 1024]",
            concat!($product, " tmm0, tmm4, tmm6"),
            concat!($product, " tmm1, tmm4, tmm7"),
            concat!($product, " tmm2, tmm5, tmm6"),
            concat!($product, " tmm3, tmm5, tmm7"),
            "add {a}, 2048",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 2b",
            a = inout(reg) $a => _, b = inout(reg) $b => _, steps = inout(reg) $steps => _,
            row = in(reg) 64usize, options(nostack, readonly)
        );
        asm!(
            "tilestored [{c} + {row}], tmm0",
            "tilestored [{c} + {row} + 1024], tmm1",
            "tilestored [{c} + {row} + 2048], tmm2",
            "tilestored [{c} + {row} + 3072], tmm3",
            c = in(reg) $sums, row = in(reg) 64usize, options(nostack)
        );
    }};
}
pub(crate) use multiply_tiles;
