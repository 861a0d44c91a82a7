//! The products of tiled attention with AMX tiles, see [`tiles`](super::tiles).

use super::tiled::{self, Block, Lanes};
use super::tiles::{Product, Tiles};
use crate::dtype::{BF16, I8};
use crate::parallel::Scratch;
use crate::simd::amx::{load_tile_config, release_tiles};
use std::arch::asm;

struct Amx;

// SAFETY: tiles are stored to C, whose rows are those of `Lanes`.
unsafe impl Product for Amx {
    unsafe fn start() {
        // SAFETY: the caller guarantees AMX and keeps nothing in tiles.
        unsafe { load_tile_config() }
    }

    unsafe fn stop() {
        // SAFETY: as above.
        unsafe { release_tiles() }
    }

    #[inline]
    unsafe fn product(a: *const u8, b: *const u8, steps: usize, add: bool, c: *mut Lanes) {
        // SAFETY: the caller guarantees AMX, configured tiles and the shapes; the compiler never uses tiles.
        unsafe {
            if add {
                asm!(
                    "tileloadd tmm0, [{c} + {row}]",
                    "tileloadd tmm1, [{c} + {row} + 64]",
                    "tileloadd tmm2, [{c} + {row} + 2048]",
                    "tileloadd tmm3, [{c} + {row} + 2112]",
                    c = in(reg) c, row = in(reg) size_of::<Lanes>(), options(nostack, readonly)
                );
            } else {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nomem, nostack));
            }
            asm!(
                "2:",
                "tileloadd tmm6, [{b} + {row}]",
                "tileloadd tmm4, [{a} + {row}]",
                "tileloadd tmm7, [{b} + {row} + 1024]",
                "tileloadd tmm5, [{a} + {row} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 2048",
                "add {b}, 2048",
                "dec {steps}",
                "jnz 2b",
                a = inout(reg) a => _, b = inout(reg) b => _, steps = inout(reg) steps => _,
                row = in(reg) 64usize, options(nostack, readonly)
            );
            asm!(
                "tilestored [{c} + {row}], tmm0",
                "tilestored [{c} + {row} + 64], tmm1",
                "tilestored [{c} + {row} + 2048], tmm2",
                "tilestored [{c} + {row} + 2112], tmm3",
                c = in(reg) c, row = in(reg) size_of::<Lanes>(), options(nostack)
            );
        }
    }
}

macro_rules! kernels {
    ($($name:ident: $dtype:expr;)*) => {$(
        /// # Safety
        /// See [`BlockFn`](tiled::BlockFn); AMX-TILE, AMX-BF16, AVX512-BF16 and the permission to use tile state.
        pub(crate) unsafe fn $name(scratch: &Scratch, block: &Block) {
            // SAFETY: the contract is the caller's.
            unsafe { tiled::attend::<Tiles<{ $dtype }, Amx>>(scratch, block) }
        }
    )*};
}

kernels! {
    block_bf16_amx: BF16;
    block_i8_amx: I8;
}
