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
