//! The table of kernels of each tier.
//!
//! A tier is the one below it with the kernels it improves replaced, so a new kernel is one line here. The only source of a
//! table is [`Kernels::select`], which gives it out only if the CPU has the tier: safe code cannot call a kernel that the
//! CPU cannot run.

use crate::cpu::{self, Isa};
use crate::dtype::{DType, TYPES};
use crate::ops::activation::Activation;
use crate::ops::attention::span::SpanFn;
use crate::ops::attention::tiled::BlockFn;
use crate::ops::axpy::AxpyRowsFn;
use crate::ops::bitmap_axpy::BitmapAxpyKernel;
use crate::ops::bitmap_dot::{BitmapDotInt8Fn, BitmapDotKernel};
use crate::ops::dot::{DotRowsFn, Rows, RowsDotKernel};
use crate::ops::dot_int8::{DotInt8Fn, QuantizeFn};
use crate::ops::encode::EncodeFn;
use crate::ops::expand::ExpandFn;
#[cfg(target_arch = "x86_64")]
use crate::ops::gemm;
use crate::ops::gemm::GemmFn;
use crate::ops::{
    activation, attention, axpy, dot, dot_int8, encode, expand, norm, rope, select, sign, softmax, sparse_mlp_integer,
};
#[cfg(target_arch = "x86_64")]
use crate::ops::{bitmap_axpy, bitmap_dot};
use crate::probe;
use std::mem::MaybeUninit;

/// Function pointers to the kernels of one tier. Arrays are indexed by [`DType`](crate::DType).
///
/// # Safety
/// Every kernel requires the features of its tier, which holding a `&'static Kernels` proves; the doc of each kernel's type
/// says what else it requires.
#[allow(clippy::type_complexity)]
pub(crate) struct Kernels {
    isa: Isa,
    pub(crate) dot_rows: [DotRowsFn; TYPES],
    pub(crate) axpy_rows: [AxpyRowsFn; TYPES],
    /// For more activations than few; `None`: the blocked product.
    pub(crate) dot_many: [Option<RowsDotKernel<Rows>>; TYPES],
    pub(crate) dot_int8: DotInt8Fn,
    pub(crate) quantize: QuantizeFn,
    /// Of elements of 4, 8, 16 and 32 bits, see [`kernel`](expand::kernel).
    pub(crate) expand: [ExpandFn; 4],
    /// `None`: rows are expanded in memory.
    pub(crate) bitmap_dot: [Option<BitmapDotKernel>; TYPES],
    pub(crate) bitmap_dot_int8: Option<BitmapDotInt8Fn>,
    /// `None`: as above.
    pub(crate) bitmap_axpy: [Option<BitmapAxpyKernel>; TYPES],
    /// `None`: many activations are multiplied like few.
    pub(crate) gemm: [Option<GemmFn>; TYPES],
    pub(crate) span: [SpanFn; TYPES],
    /// `None`: every row reads the cache on its own.
    pub(crate) block: [Option<BlockFn>; TYPES],
    /// For more rows, in bf16; `None`: as `block`.
    pub(crate) block_rounded: [Option<BlockFn>; TYPES],
    pub(crate) encode: [EncodeFn; TYPES],
    pub(crate) activate: unsafe fn(Activation, &mut [f32]),
    pub(crate) gated: unsafe fn(Activation, &[f32], &[f32], &mut [f32]),
    pub(crate) rms_norm: unsafe fn(&[f32], &[f32], f32, f32, &mut [f32]),
    pub(crate) layer_norm: unsafe fn(&[f32], &[f32], Option<&[f32]>, f32, &mut [f32]),
    pub(crate) add_assign: unsafe fn(&mut [f32], &[f32]),
    pub(crate) rope: unsafe fn(&mut [f32], usize, &[f32], &[f32]),
    pub(crate) softmax: unsafe fn(&mut [f32]),
    pub(crate) max_ignoring_nan: unsafe fn(&[f32]) -> f32,
    pub(crate) mask_above: unsafe fn(&[f32], f32, bool, &mut [u64]),
    pub(crate) mask_nonzero: unsafe fn(&[f32], &mut [u64]),
    pub(crate) zero_unset: unsafe fn(&mut [f32], &[u64]),
    pub(crate) mask_to_ids: unsafe fn(&[u64], &mut [MaybeUninit<u32>]) -> usize,
    pub(crate) sign_agreement: unsafe fn(&[u64], &[u64], usize, &mut [f32]),
    pub(crate) sums: unsafe fn(&[f32]) -> (f64, f64),
    pub(crate) dot_i32: unsafe fn(&[i32], &[i32]) -> i64,
    pub(crate) axpy_i32: unsafe fn(i32, &[i32], &mut [i64]),
    pub(crate) read: unsafe fn(&[u8]) -> u64,
    pub(crate) peak_f32: unsafe fn(usize) -> f64,
}

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
            Isa::Amx => &AMX,
        });
        #[cfg(not(target_arch = "x86_64"))]
        Some(&SCALAR)
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }
}

const SCALAR: Kernels = Kernels {
    isa: Isa::Scalar,
    dot_rows: [
        dot::scalar::dot_rows_f32_scalar,
        dot::scalar::dot_rows_f16_scalar,
        dot::scalar::dot_rows_bf16_scalar,
        dot::scalar::dot_rows_i8_scalar,
        dot::scalar::dot_rows_i4g32_scalar,
        dot::scalar::dot_rows_i4g32z_scalar,
        dot::scalar::dot_rows_i4g128_scalar,
        dot::scalar::dot_rows_i4g128z_scalar,
    ],
    axpy_rows: [
        axpy::scalar::axpy_rows_f32_scalar,
        axpy::scalar::axpy_rows_f16_scalar,
        axpy::scalar::axpy_rows_bf16_scalar,
        axpy::scalar::axpy_rows_i8_scalar,
        axpy::scalar::axpy_rows_i4g32_scalar,
        axpy::scalar::axpy_rows_i4g32z_scalar,
        axpy::scalar::axpy_rows_i4g128_scalar,
        axpy::scalar::axpy_rows_i4g128z_scalar,
    ],
    dot_many: [None; TYPES],
    dot_int8: dot_int8::scalar::dot_int8_scalar,
    quantize: dot_int8::scalar::quantize_scalar,
    expand: [
        expand::scalar::expand_4_bits_scalar,
        expand::scalar::expand_8_bits_scalar,
        expand::scalar::expand_16_bits_scalar,
        expand::scalar::expand_32_bits_scalar,
    ],
    bitmap_dot: [None; TYPES],
    bitmap_dot_int8: None,
    bitmap_axpy: [None; TYPES],
    gemm: [None; TYPES],
    span: [
        attention::scalar::span_f32_scalar,
        attention::scalar::span_f16_scalar,
        attention::scalar::span_bf16_scalar,
        attention::scalar::span_i8_scalar,
        attention::scalar::span_i4g32_scalar,
        attention::scalar::span_i4g32z_scalar,
        attention::scalar::span_i4g128_scalar,
        attention::scalar::span_i4g128z_scalar,
    ],
    block: [None; TYPES],
    block_rounded: [None; TYPES],
    encode: [
        encode::scalar::encode_f32_scalar,
        encode::scalar::encode_f16_scalar,
        encode::scalar::encode_bf16_scalar,
        encode::scalar::encode_i8_scalar,
        encode::scalar::encode_i4g32_scalar,
        encode::scalar::encode_i4g32z_scalar,
        encode::scalar::encode_i4g128_scalar,
        encode::scalar::encode_i4g128z_scalar,
    ],
    activate: activation::scalar::activate_f32_scalar,
    gated: activation::scalar::gated_f32_scalar,
    rms_norm: norm::scalar::rms_norm_f32_scalar,
    layer_norm: norm::scalar::layer_norm_f32_scalar,
    add_assign: norm::scalar::add_assign_f32_scalar,
    rope: rope::scalar::rope_f32_scalar,
    softmax: softmax::scalar::softmax_f32_scalar,
    max_ignoring_nan: softmax::scalar::max_ignoring_nan_f32_scalar,
    mask_above: select::scalar::mask_above_f32_scalar,
    mask_nonzero: select::scalar::mask_nonzero_f32_scalar,
    zero_unset: select::scalar::zero_unset_f32_scalar,
    mask_to_ids: select::scalar::mask_to_ids_scalar,
    sign_agreement: sign::scalar::sign_agreement_scalar,
    sums: select::scalar::sums_f32_scalar,
    dot_i32: sparse_mlp_integer::scalar::dot_i32_scalar,
    axpy_i32: sparse_mlp_integer::scalar::axpy_i32_scalar,
    read: probe::scalar::read_scalar,
    peak_f32: probe::scalar::peak_f32_scalar,
};

#[cfg(target_arch = "x86_64")]
const AVX2: Kernels = Kernels {
    isa: Isa::Avx2,
    dot_rows: [
        dot::avx2::dot_rows_f32_avx2,
        dot::avx2::dot_rows_f16_avx2,
        dot::avx2::dot_rows_bf16_avx2,
        dot::avx2::dot_rows_i8_avx2,
        dot::avx2::dot_rows_i4g32_avx2,
        dot::avx2::dot_rows_i4g32z_avx2,
        dot::avx2::dot_rows_i4g128_avx2,
        dot::avx2::dot_rows_i4g128z_avx2,
    ],
    axpy_rows: [
        axpy::avx2::axpy_rows_f32_avx2,
        axpy::avx2::axpy_rows_f16_avx2,
        axpy::avx2::axpy_rows_bf16_avx2,
        axpy::avx2::axpy_rows_i8_avx2,
        axpy::avx2::axpy_rows_i4g32_avx2,
        axpy::avx2::axpy_rows_i4g32z_avx2,
        axpy::avx2::axpy_rows_i4g128_avx2,
        axpy::avx2::axpy_rows_i4g128z_avx2,
    ],
    dot_many: [None; TYPES],
    dot_int8: dot_int8::avx2::dot_int8_avx2,
    quantize: dot_int8::avx2::quantize_avx2,
    expand: [
        expand::avx2::expand_4_bits_avx2,
        expand::avx2::expand_8_bits_avx2,
        expand::avx2::expand_16_bits_avx2,
        expand::avx2::expand_32_bits_avx2,
    ],
    bitmap_dot: [None; TYPES],
    bitmap_dot_int8: None,
    bitmap_axpy: [None; TYPES],
    gemm: [None; TYPES],
    span: [
        attention::avx2::span_f32_avx2,
        attention::avx2::span_f16_avx2,
        attention::avx2::span_bf16_avx2,
        attention::avx2::span_i8_avx2,
        attention::scalar::span_i4g32_scalar,
        attention::scalar::span_i4g32z_scalar,
        attention::scalar::span_i4g128_scalar,
        attention::scalar::span_i4g128z_scalar,
    ],
    block: [
        Some(attention::avx2::block_f32_avx2),
        Some(attention::avx2::block_f16_avx2),
        Some(attention::avx2::block_bf16_avx2),
        Some(attention::avx2::block_i8_avx2),
        None,
        None,
        None,
        None,
    ],
    block_rounded: [None; TYPES],
    encode: [
        encode::scalar::encode_f32_scalar,
        encode::avx2::encode_f16_avx2,
        encode::avx2::encode_bf16_avx2,
        encode::avx2::encode_i8_avx2,
        encode::scalar::encode_i4g32_scalar,
        encode::scalar::encode_i4g32z_scalar,
        encode::scalar::encode_i4g128_scalar,
        encode::scalar::encode_i4g128z_scalar,
    ],
    activate: activation::avx2::activate_f32_avx2,
    gated: activation::avx2::gated_f32_avx2,
    rms_norm: norm::avx2::rms_norm_f32_avx2,
    layer_norm: norm::avx2::layer_norm_f32_avx2,
    add_assign: norm::avx2::add_assign_f32_avx2,
    rope: rope::avx2::rope_f32_avx2,
    softmax: softmax::avx2::softmax_f32_avx2,
    max_ignoring_nan: softmax::avx2::max_ignoring_nan_f32_avx2,
    mask_above: select::avx2::mask_above_f32_avx2,
    mask_nonzero: select::avx2::mask_nonzero_f32_avx2,
    sign_agreement: sign::avx2::sign_agreement_avx2,
    zero_unset: select::avx2::zero_unset_f32_avx2,
    mask_to_ids: select::scalar::mask_to_ids_scalar,
    sums: select::avx2::sums_f32_avx2,
    dot_i32: sparse_mlp_integer::avx2::dot_i32_avx2,
    axpy_i32: sparse_mlp_integer::avx2::axpy_i32_avx2,
    read: probe::avx2::read_avx2,
    peak_f32: probe::avx2::peak_f32_avx2,
};

#[cfg(target_arch = "x86_64")]
const AVX512: Kernels = Kernels {
    isa: Isa::Avx512,
    dot_rows: [
        dot::avx512::dot_rows_f32_avx512,
        dot::avx512::dot_rows_f16_avx512,
        dot::avx512::dot_rows_bf16_avx512,
        dot::avx512::dot_rows_i8_avx512,
        dot::avx512::dot_rows_i4g32_avx512,
        dot::avx512::dot_rows_i4g32z_avx512,
        dot::avx512::dot_rows_i4g128_avx512,
        dot::avx512::dot_rows_i4g128z_avx512,
    ],
    axpy_rows: [
        axpy::avx512::axpy_rows_f32_avx512,
        axpy::avx512::axpy_rows_f16_avx512,
        axpy::avx512::axpy_rows_bf16_avx512,
        axpy::avx512::axpy_rows_i8_avx512,
        axpy::avx512::axpy_rows_i4g32_avx512,
        axpy::avx512::axpy_rows_i4g32z_avx512,
        axpy::avx512::axpy_rows_i4g128_avx512,
        axpy::avx512::axpy_rows_i4g128z_avx512,
    ],
    dot_many: [None; TYPES],
    dot_int8: dot_int8::avx2::dot_int8_avx2,
    quantize: dot_int8::avx512::quantize_avx512,
    expand: [
        expand::avx2::expand_4_bits_avx2,
        expand::avx2::expand_8_bits_avx2,
        expand::avx2::expand_16_bits_avx2,
        expand::avx512::expand_32_bits_avx512,
    ],
    bitmap_dot: [None; TYPES],
    bitmap_dot_int8: None,
    bitmap_axpy: [None; TYPES],
    gemm: [
        Some(gemm::avx512::gemm_f32_avx512),
        Some(gemm::avx512::gemm_f16_avx512),
        Some(gemm::avx512::gemm_bf16_avx512),
        None,
        Some(gemm::avx512::gemm_i4g32_avx512),
        Some(gemm::avx512::gemm_i4g32z_avx512),
        Some(gemm::avx512::gemm_i4g128_avx512),
        Some(gemm::avx512::gemm_i4g128z_avx512),
    ],
    span: [
        attention::avx512::span_f32_avx512,
        attention::avx512::span_f16_avx512,
        attention::avx512::span_bf16_avx512,
        attention::avx512::span_i8_avx512,
        attention::scalar::span_i4g32_scalar,
        attention::scalar::span_i4g32z_scalar,
        attention::scalar::span_i4g128_scalar,
        attention::scalar::span_i4g128z_scalar,
    ],
    block: [
        Some(attention::avx512::block_f32_avx512),
        Some(attention::avx512::block_f16_avx512),
        Some(attention::avx512::block_bf16_avx512),
        Some(attention::avx512::block_i8_avx512),
        None,
        None,
        None,
        None,
    ],
    block_rounded: [None; TYPES],
    encode: [
        encode::scalar::encode_f32_scalar,
        encode::avx512::encode_f16_avx512,
        encode::avx512::encode_bf16_avx512,
        encode::avx512::encode_i8_avx512,
        encode::scalar::encode_i4g32_scalar,
        encode::scalar::encode_i4g32z_scalar,
        encode::scalar::encode_i4g128_scalar,
        encode::scalar::encode_i4g128z_scalar,
    ],
    activate: activation::avx512::activate_f32_avx512,
    gated: activation::avx512::gated_f32_avx512,
    rms_norm: norm::avx512::rms_norm_f32_avx512,
    layer_norm: norm::avx512::layer_norm_f32_avx512,
    add_assign: norm::avx512::add_assign_f32_avx512,
    rope: rope::avx512::rope_f32_avx512,
    softmax: softmax::avx512::softmax_f32_avx512,
    max_ignoring_nan: softmax::avx512::max_ignoring_nan_f32_avx512,
    mask_above: select::avx512::mask_above_f32_avx512,
    mask_nonzero: select::avx512::mask_nonzero_f32_avx512,
    sign_agreement: sign::avx512::sign_agreement_avx512,
    zero_unset: select::avx512::zero_unset_f32_avx512,
    mask_to_ids: select::avx512::mask_to_ids_avx512,
    // 512-bit vectors of f64 are no faster, and sometimes three times slower.
    sums: select::avx2::sums_f32_avx2,
    dot_i32: sparse_mlp_integer::avx512::dot_i32_avx512,
    axpy_i32: sparse_mlp_integer::avx512::axpy_i32_avx512,
    read: probe::avx512::read_avx512,
    peak_f32: probe::avx512::peak_f32_avx512,
};

/// AVX-512 where the CPU has VNNI too.
#[cfg(target_arch = "x86_64")]
const AVX512_VNNI: Kernels = Kernels { dot_int8: dot_int8::avx512::dot_int8_avx512, ..AVX512 };

/// AVX-512 where the CPU has VNNI and VBMI2, which puts small elements in their places.
#[cfg(target_arch = "x86_64")]
const AVX512_VBMI2: Kernels = Kernels {
    expand: [
        expand::avx512::expand_4_bits_avx512,
        expand::avx512::expand_8_bits_avx512,
        expand::avx512::expand_16_bits_avx512,
        expand::avx512::expand_32_bits_avx512,
    ],
    bitmap_dot: [
        Some(BitmapDotKernel::in_registers(bitmap_dot::avx512::bitmap_dot_f32_avx512)),
        Some(BitmapDotKernel::in_registers(bitmap_dot::avx512::bitmap_dot_f16_avx512)),
        Some(BitmapDotKernel::in_registers(bitmap_dot::avx512::bitmap_dot_bf16_avx512)),
        None,
        None,
        None,
        None,
        None,
    ],
    bitmap_dot_int8: Some(bitmap_dot::avx512_int8::bitmap_dot_int8_avx512),
    bitmap_axpy: [
        Some(BitmapAxpyKernel::in_registers(bitmap_axpy::avx512::bitmap_axpy_f32_avx512)),
        Some(BitmapAxpyKernel::in_registers(bitmap_axpy::avx512::bitmap_axpy_f16_avx512)),
        Some(BitmapAxpyKernel::in_registers(bitmap_axpy::avx512::bitmap_axpy_bf16_avx512)),
        Some(BitmapAxpyKernel::in_registers(bitmap_axpy::avx512::bitmap_axpy_i8_avx512)),
        None,
        None,
        None,
        None,
    ],
    span: [
        attention::avx512_vbmi2::span_f32_avx512_vbmi2,
        attention::avx512_vbmi2::span_f16_avx512_vbmi2,
        attention::avx512_vbmi2::span_bf16_avx512_vbmi2,
        attention::avx512_vbmi2::span_i8_avx512_vbmi2,
        attention::scalar::span_i4g32_scalar,
        attention::scalar::span_i4g32z_scalar,
        attention::scalar::span_i4g128_scalar,
        attention::scalar::span_i4g128z_scalar,
    ],
    ..AVX512_VNNI
};

#[cfg(target_arch = "x86_64")]
const AMX: Kernels = Kernels {
    isa: Isa::Amx,
    dot_many: {
        let mut kernels = AVX512_VBMI2.dot_many;
        kernels[DType::BF16 as usize] = Some(RowsDotKernel { run: dot::amx::dot_bf16_amx, tokens: 32, few: 96 });
        kernels
    },
    bitmap_dot: {
        let mut kernels = AVX512_VBMI2.bitmap_dot;
        kernels[DType::BF16 as usize] =
            Some(BitmapDotKernel { run: bitmap_dot::amx::bitmap_dot_bf16_amx, tokens: 32, few: 96 });
        kernels
    },
    bitmap_axpy: {
        let mut kernels = AVX512_VBMI2.bitmap_axpy;
        kernels[DType::BF16 as usize] = Some(BitmapAxpyKernel { run: bitmap_axpy::amx::bitmap_axpy_bf16_amx, few: 16 });
        kernels
    },
    gemm: [
        Some(gemm::avx512::gemm_f32_avx512),
        Some(gemm::avx512::gemm_f16_avx512),
        Some(gemm::amx::gemm_bf16_amx),
        Some(gemm::amx_int8::gemm_i8_amx),
        Some(gemm::amx::gemm_i4g32_amx),
        Some(gemm::amx::gemm_i4g32z_amx),
        Some(gemm::amx::gemm_i4g128_amx),
        Some(gemm::amx::gemm_i4g128z_amx),
    ],
    block_rounded: [
        None,
        None,
        Some(attention::amx::block_bf16_amx),
        Some(attention::amx::block_i8_amx),
        None,
        None,
        None,
        None,
    ],
    ..AVX512_VBMI2
};
