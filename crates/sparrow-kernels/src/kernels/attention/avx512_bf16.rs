//! The products of tiled attention with AVX512-BF16, see [`tiles`](super::tiles): a pair of elements of a row of A by the
//! same pair of 32 columns of B.

use super::tiled::{self, Block, Lanes};
use super::tiles::{Product, Tiles};
use crate::dtype::{BF16, I8};
use crate::parallel::Scratch;
use crate::simd::tiles::{ROWS, TILE, pairs};
use std::arch::x86_64::*;

/// Rows of C whose sums are in registers at once.
const AT_ONCE: usize = 8;

struct DotProducts;

// SAFETY: C is written row by row.
unsafe impl Product for DotProducts {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn product(a: *const u8, b: *const u8, steps: usize, add: bool, c: *mut Lanes) {
        for row in (0..2 * ROWS).step_by(AT_ONCE) {
            let mut sums = [[_mm512_setzero_ps(); 2]; AT_ONCE];
            // SAFETY: A and B have two tiles per step, 16 rows of 64 bytes each; C has 32 rows of 32 values.
            unsafe {
                let c = c.add(row).cast::<[f32; 16]>();
                if add {
                    for (r, sums) in sums.iter_mut().enumerate() {
                        *sums = [_mm512_loadu_ps(c.add(2 * r).cast()), _mm512_loadu_ps(c.add(2 * r + 1).cast())];
                    }
                }
                let a = a.add(row / ROWS * TILE + row % ROWS * 64);
                for step in 0..steps {
                    let (a, b) = (a.add(step * 2 * TILE), b.add(step * 2 * TILE));
                    for pair in 0..16 {
                        let left = pairs(_mm512_loadu_si512(b.add(pair * 64).cast()));
                        let right = pairs(_mm512_loadu_si512(b.add(TILE + pair * 64).cast()));
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let by = pairs(_mm512_set1_epi32(a.add(r * 64 + pair * 4).cast::<i32>().read()));
                            sums[0] = _mm512_dpbf16_ps(sums[0], by, left);
                            sums[1] = _mm512_dpbf16_ps(sums[1], by, right);
                        }
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    _mm512_storeu_ps(c.add(2 * r).cast(), sums[0]);
                    _mm512_storeu_ps(c.add(2 * r + 1).cast(), sums[1]);
                }
            }
        }
    }
}

macro_rules! kernels {
    ($($name:ident: $dtype:expr;)*) => {$(
        /// # Safety
        /// See [`BlockFn`](tiled::BlockFn); AVX-512 with BF16.
        pub(crate) unsafe fn $name(scratch: &Scratch, block: &Block) {
            // SAFETY: the contract is the caller's.
            unsafe { tiled::attend::<Tiles<{ $dtype }, DotProducts>>(scratch, block) }
        }
    )*};
}

kernels! {
    block_bf16_avx512_bf16: BF16;
    block_i8_avx512_bf16: I8;
}
