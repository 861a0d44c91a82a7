//! What a table holds.

use crate::cpu::Isa;
use crate::dtype::{CACHES, TYPES};
use crate::kernels::activation::Activation;
use crate::kernels::attention::span::SpanFn;
use crate::kernels::attention::tiled::BlockFn;
use crate::kernels::axpy::AxpyRowsFn;
use crate::kernels::bitmap_axpy::BitmapAxpyKernel;
use crate::kernels::bitmap_dot::{BitmapDotInt8Fn, BitmapDotKernel};
use crate::kernels::decode_codes::DecodeCodesFn;
use crate::kernels::dot::{DotRowsFn, RowsDotKernel};
use crate::kernels::dot_codes::DotCodesFn;
use crate::kernels::dot_int8::{DotInt8Fn, QuantizeFn};
use crate::kernels::encode::EncodeFn;
use crate::kernels::gemm::GemmFn;
use crate::rows::Rows;
use crate::rows::expand::ExpandFn;
use std::mem::MaybeUninit;

/// Function pointers to the kernels of one tier. Arrays are indexed by [`DType`](crate::DType); those of types that
/// caches may have, and of floats, are shorter.
///
/// # Safety
/// Every kernel requires the features of its table, which holding a `&'static Kernels` proves; the doc of each kernel's
/// type says what else it requires.
#[allow(clippy::type_complexity)]
pub(crate) struct Kernels {
    pub(super) isa: Isa,
    /// The tier's, and what of what only some CPUs of it have is used.
    pub(crate) name: &'static str,
    pub(crate) dot_rows: [DotRowsFn; 3],
    pub(crate) axpy_rows: [AxpyRowsFn; TYPES],
    /// For more activations than few; `None`: the blocked product.
    pub(crate) dot_many: [Option<RowsDotKernel<Rows>>; TYPES],
    pub(crate) dot_int8: DotInt8Fn,
    /// Up to this many activations it takes less time than the blocked product.
    pub(crate) few_int8: usize,
    /// `None`: floats and int8.
    pub(crate) dot_codes: [Option<DotCodesFn>; TYPES],
    /// As of int8.
    pub(crate) few_codes: usize,
    /// As above.
    pub(crate) decode_codes: [Option<DecodeCodesFn>; TYPES],
    pub(crate) quantize: QuantizeFn,
    /// Of elements of 4, 8, 16 and 32 bits.
    pub(crate) expand: [ExpandFn; 4],
    /// `None`: rows are expanded in memory.
    pub(crate) bitmap_dot: [Option<BitmapDotKernel>; TYPES],
    pub(crate) bitmap_dot_int8: Option<BitmapDotInt8Fn>,
    /// `None`: as above.
    pub(crate) bitmap_axpy: [Option<BitmapAxpyKernel>; TYPES],
    /// `None`: many activations are multiplied like few.
    pub(crate) gemm: [Option<GemmFn>; TYPES],
    pub(crate) span: [SpanFn; CACHES],
    /// `None`: every row reads the cache on its own.
    pub(crate) block: [Option<BlockFn>; CACHES],
    /// For more rows, in bf16; `None`: as `block`.
    pub(crate) block_rounded: [Option<BlockFn>; CACHES],
    pub(crate) encode: [EncodeFn; CACHES],
    pub(crate) activate: unsafe fn(Activation, &mut [f32]),
    pub(crate) gated: unsafe fn(Activation, &[f32], &[f32], &mut [f32]),
    pub(crate) rms_norm: unsafe fn(&[f32], &[f32], f32, f32, &mut [f32]),
    pub(crate) layer_norm: unsafe fn(&[f32], &[f32], Option<&[f32]>, f32, &mut [f32]),
    pub(crate) add_assign: unsafe fn(&mut [f32], &[f32]),
    pub(crate) rope: unsafe fn(&mut [f32], usize, &[f32], &[f32]),
    pub(crate) softmax: unsafe fn(&mut [f32]),
    pub(crate) max_ignoring_nan: unsafe fn(&[f32]) -> f32,
    pub(crate) mask_above: unsafe fn(&[f32], f32, bool, &mut [u64]),
    pub(crate) zero_unset: unsafe fn(&mut [f32], &[u64]),
    pub(crate) mask_to_ids: unsafe fn(&[u64], &mut [MaybeUninit<u32>]) -> usize,
    pub(crate) sign_agreement: unsafe fn(&[u64], &[u64], usize, &mut [f32]),
    pub(crate) sums: unsafe fn(&[f32]) -> (f64, f64),
    pub(crate) dot_i32: unsafe fn(&[i32], &[i32]) -> i64,
    pub(crate) axpy_i32: unsafe fn(i32, &[i32], &mut [i64]),
    pub(crate) read: unsafe fn(&[u8]) -> u64,
    pub(crate) peak_f32: unsafe fn(usize) -> f64,
    pub(crate) peak_bf16: unsafe fn(usize) -> f64,
    pub(crate) peak_int8: unsafe fn(usize) -> f64,
}

impl Kernels {
    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }
}
