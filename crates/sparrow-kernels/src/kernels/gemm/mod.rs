//! Products of many activations with a weight: blocked, both operands packed.
//!
//! out\[t, j\] = Σᵢ x\[t, i\] · W\[j, i\] + bias\[j\] for more than [`FEW`](crate::rows::FEW) activations, when
//! arithmetic and not memory decides. Used by [`linear`](crate::Compute::linear) and
//! [`linear_in_out`](crate::Compute::linear_in_out) wherever a tier has a [`GemmFn`], but for numbers of activations at
//! which reading weights as they are takes less time ([`RowsDotKernel`](super::dot::RowsDotKernel)).
//!
//! All tiers share the loops of [`drive`](driver::drive); an [`Engine`] packs the operands and multiplies. Activations
//! are packed once per call, in *strips* of a few tokens, weights once per task, in *panels* of a few rows, each cut
//! along k into blocks. For every block of k a task packs its panels (they stay in L2) and runs every strip (it stays
//! in L1) against all of them, adding to results that stay in L2 until the last block writes them out. Bitmaps are
//! expanded before they are packed, a panel or a block at a time (`source.rs`), so that strips see them as they see
//! dense weights.
//!
//! The numbers for bf16 on AMX, 512 tokens, 48 KiB of L1 and 2 MiB of L2 per core: a strip is 32 tokens × 256 × 2 B =
//! 16 KiB; a task of 256 rows holds 128 KiB of panels, 512 KiB of sums, and the 256 KiB of packed activations of a
//! block pass through it once. One step of 32 elements is four products of 16 cycles and loads two tiles (2 KiB) from
//! L1 and two from L2, 32 B per cycle of the 64 that L2 can give. From beyond L2 a task reads its weights once and the
//! activations once, 512 B + 1 KiB per element of k for 256 · 512 multiply-adds, which are 256 cycles of products: 6 B
//! per cycle, asked for one strip and one block ahead. Measured, in cycles per product of tiles where 16 is the peak:
//! 19 with everything in L1, 23 with panels and sums in L2. Strips of 384 or 512 elements crowd L1 and cost 5 to 10 %
//! more; tasks of 384 rows crowd L2.

// Without vector tiers nothing uses this.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

pub(crate) mod driver;
mod source;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod amx_int8;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2_vnni;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_bf16;
#[cfg(target_arch = "x86_64")]
mod codes;
#[cfg(target_arch = "x86_64")]
mod widened;

use super::decode_codes::DecodeCodesFn;
use crate::dtype::{DType, Matrix, Stored};
use crate::parallel::{SharedMut, Workers};
use crate::rows::{Expander, Int16Activations, Int16Rows};
use std::ops::Range;

/// The most outputs of a task.
const MAX_ROWS: usize = 256;

/// How a weight is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `[out, in]`.
    OutIn,
    /// `[in, out]`.
    InOut,
}

/// One weight, its bias and its result `[m, n]`.
pub(crate) struct Part<'a> {
    pub weights: Stored<'a>,
    /// `[n]`.
    pub bias: Option<&'a [f32]>,
    pub out: SharedMut<'a, f32>,
}

/// The arguments of a [`GemmFn`].
pub(crate) struct Gemm<'a> {
    /// `[m, k]`.
    pub x: &'a [f32],
    /// The same in 16-bit integers, for weights of int8, and of codes `[out, in]`.
    pub int16: Option<&'a Int16Activations<'a>>,
    pub m: usize,
    /// Above 0.
    pub k: usize,
    pub layout: Layout,
    /// With [`Layout::InOut`], the row of the weights that belongs to each column of x; `None`: the same.
    pub ids: Option<&'a [u32]>,
    /// All of the element type of the kernel.
    pub parts: &'a [Part<'a>],
    /// For bitmaps.
    pub expand: Expander,
    /// For weights of codes.
    pub decode: Option<DecodeCodesFn>,
    /// What packs panels of codes; set by their kernels.
    pub pack: Option<PackFn>,
}

impl Gemm<'_> {
    /// The outputs of one part.
    fn outputs(&self, part: &Part) -> usize {
        match self.layout {
            Layout::OutIn => part.weights.rows(),
            Layout::InOut => part.weights.cols(),
        }
    }

    /// The activations in 16-bit integers.
    ///
    /// # Panics
    /// If there are none: every caller gives them to kernels that take them.
    #[inline(always)]
    fn quantized(&self) -> Int16Rows {
        self.int16.map(Int16Activations::rows).expect("int8 and codes come with activations in int16")
    }
}

/// A blocked product on all threads.
///
/// # Safety
/// The CPU must have the kernel's features; shapes must match, ids be rows of the weights, and nobody else may use the
/// results during the call.
pub(crate) type GemmFn = unsafe fn(&Workers, &Gemm);

/// Packs a panel, as [`Engine::pack_w`] does.
///
/// # Safety
/// See there.
pub(crate) type PackFn = unsafe fn(&Panel, *mut u8);

/// Some elements of a weight: `rows` outputs from `row`, `len` inputs from `k`.
pub(crate) struct Panel<'a> {
    pub weights: Matrix<'a>,
    pub layout: Layout,
    pub ids: Option<&'a [u32]>,
    pub row: usize,
    pub rows: usize,
    pub k: usize,
    pub len: usize,
    /// Of [`Gemm`].
    pub pack: Option<PackFn>,
}

impl<'a> Panel<'a> {
    /// The stored rows that the panel takes part of: its outputs, or its inputs.
    ///
    /// # Panics
    /// If one of them, or the part of it that belongs to the panel, is not in the weights.
    #[inline]
    pub(crate) fn stored_rows(&self) -> StoredRows<'a> {
        let (first, count, start, len) = match self.layout {
            Layout::OutIn => (self.row, self.rows, self.k, self.len),
            Layout::InOut => (self.k, self.len, self.row, self.rows),
        };
        let ids = self.ids.map(|ids| &ids[first..first + count]);
        let last = ids.map_or((first + count).saturating_sub(1), |ids| ids.iter().copied().max().unwrap_or(0) as usize);
        assert!(count == 0 || last < self.weights.rows() && start + len <= self.weights.cols());
        let bytes = |elements: usize| match self.weights.dtype() {
            DType::F32 => 4 * elements,
            DType::F16 | DType::BF16 => 2 * elements,
            DType::I8 => elements,
            DType::I4G32 | DType::I4G32Z | DType::I4G128 | DType::I4G128Z => elements / 2,
            blocks => blocks.row_bytes(elements),
        };
        let first = if ids.is_some() { 0 } else { first };
        let stride = self.weights.stride();
        let base = self.weights.bytes().as_ptr().wrapping_add(first * stride);
        StoredRows { base, stride, ids, count, skip: bytes(start), bytes: bytes(len) }
    }
}

/// Some outputs of a weight: `rows` from `row` on.
pub(crate) struct Outputs<'a> {
    pub weights: Stored<'a>,
    pub row: usize,
    pub rows: usize,
}

/// Parts of some stored rows of a weight.
pub(crate) struct StoredRows<'a> {
    base: *const u8,
    stride: usize,
    ids: Option<&'a [u32]>,
    pub count: usize,
    /// Bytes of a row before the part.
    skip: usize,
    /// Bytes of each part.
    pub bytes: usize,
}

impl StoredRows<'_> {
    /// The address of part `i`, which is readable if `i < count`.
    #[inline(always)]
    pub(crate) fn at(&self, i: usize) -> *const u8 {
        self.row(i).wrapping_add(self.skip)
    }

    /// The address of the whole row that part `i` belongs to.
    #[inline(always)]
    pub(crate) fn row(&self, i: usize) -> *const u8 {
        self.base.wrapping_add(self.stride * self.ids.map_or(i, |ids| ids[i] as usize))
    }
}

/// The packing and the inner loop of one tier and element type. All buffers are aligned to 64 bytes.
///
/// # Safety
/// Implementations may write exactly the stated sizes.
pub(crate) unsafe trait Engine {
    /// Outputs of a panel.
    const ROWS: usize;
    /// Activations of a strip.
    const TOKENS: usize;
    /// Elements of k that one block covers.
    const BLOCK: usize;
    /// Elements of k are padded with zeros to a multiple of this.
    const STEP: usize;
    /// Bytes of a packed element of a panel and of a strip, with what belongs to it.
    const W_BYTES: usize;
    const X_BYTES: usize;
    /// Bytes of a sum.
    const SUM_BYTES: usize = size_of::<f32>();
    /// Whether weights of codes are decoded to `f32` before they are packed.
    const DECODES: bool = false;

    /// Packs `tokens.len() <= TOKENS` rows of x, `len <= BLOCK` elements from `k` on each, into a strip of `TOKENS` by
    /// `len` rounded up to `STEP`.
    ///
    /// # Safety
    /// The CPU must have the features; the strip must be writable.
    unsafe fn pack_x(gemm: &Gemm, tokens: Range<usize>, k: usize, len: usize, to: *mut u8);

    /// Packs a panel of `ROWS` outputs by its length rounded up to `STEP`.
    ///
    /// # Safety
    /// The CPU must have the features; the panel must be writable.
    unsafe fn pack_w(panel: &Panel, to: *mut u8);

    /// Before the first and after the last of a task's calls of [`multiply`](Self::multiply).
    ///
    /// # Safety
    /// The CPU must have the features.
    unsafe fn start() {}
    /// See [`start`](Self::start).
    ///
    /// # Safety
    /// The CPU must have the features.
    unsafe fn stop() {}

    /// Adds the product of a panel and a strip, `len` (a multiple of `STEP`) elements, to `sums` `ROWS * TOKENS`, of the
    /// engine's own kind, or sets it if `first`.
    ///
    /// # Safety
    /// Between start and stop; packed operands and sums must be valid for these shapes.
    unsafe fn multiply(layout: Layout, w: *const u8, x: *const u8, len: usize, first: bool, sums: *mut f32);

    /// Asks for the line at `p`, into L2 to be read or into L1 to be written. The address may be any.
    ///
    /// # Safety
    /// The CPU must have the features.
    unsafe fn prefetch(p: *const u8, write: bool);

    /// Writes the sums of `outputs`, those of a panel, by `tokens`, with bias, to out `[tokens, rows]`, rows `stride`
    /// apart.
    ///
    /// # Safety
    /// The CPU must have the features; sums, bias (null for none) and out must be valid for these shapes.
    unsafe fn finish(
        gemm: &Gemm,
        outputs: &Outputs,
        tokens: Range<usize>,
        sums: *const f32,
        bias: *const f32,
        out: *mut f32,
        stride: usize,
    );
}
