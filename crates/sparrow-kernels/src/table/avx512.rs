//! AVX-512, and what it gains with VNNI and VBMI2.

use super::kernels::Kernels;
use crate::cpu::Isa;
use crate::dtype::{CACHES, DType, TYPES, by_type};
use crate::kernels::bitmap_axpy::BitmapAxpyKernel;
use crate::kernels::bitmap_dot::BitmapDotKernel;
use crate::kernels::dot::{RowsDotKernel, many};
use crate::kernels::{
    activation, attention, axpy, bitmap_axpy, bitmap_dot, decode_codes, dot, dot_codes, dot_int8, encode, expand, gemm,
    integer, norm, probe, rope, select, sign, softmax,
};

pub(super) const AVX512: Kernels = Kernels {
    isa: Isa::Avx512,
    name: "avx512",
    dot_rows: [dot::avx512::dot_rows_f32_avx512, dot::avx512::dot_rows_f16_avx512, dot::avx512::dot_rows_bf16_avx512],
    axpy_rows: by_type!(
        [
            axpy::avx512::axpy_rows_f32_avx512,
            axpy::avx512::axpy_rows_f16_avx512,
            axpy::avx512::axpy_rows_bf16_avx512,
            axpy::avx512::axpy_rows_i8_avx512,
        ],
        <axpy::avx2_codes::axpy_codes_avx2>
    ),
    dot_many: many(
        dot::avx512::dot_many_f32_avx512,
        dot::avx512::dot_many_f16_avx512,
        dot::avx512::dot_many_bf16_avx512,
    ),
    dot_int8: dot_int8::avx2::dot_int8_avx2,
    few_int8: 16,
    dot_codes: by_type!([None, None, None, None], Some<dot_codes::avx2::dot_codes_avx2>),
    few_codes: 12,
    decode_codes: by_type!([None, None, None, None], Some<decode_codes::avx2::decode_codes_avx2>),
    quantize: dot_int8::avx512::quantize_apart_avx512,
    expand: [
        expand::avx2::expand_4_bits_avx2,
        expand::avx2::expand_8_bits_avx2,
        expand::avx2::expand_16_bits_avx2,
        expand::avx512::expand_32_bits_avx512,
    ],
    bitmap_dot: [None; TYPES],
    bitmap_dot_int8: None,
    bitmap_axpy: [None; TYPES],
    gemm: by_type!(
        [
            Some(gemm::avx512::gemm_f32_avx512),
            Some(gemm::avx512::gemm_f16_avx512),
            Some(gemm::avx512::gemm_bf16_avx512),
            Some(gemm::avx2::gemm_i8_avx2),
        ],
        Some<gemm::avx2::gemm_codes_avx2>
    ),
    span: [
        attention::avx512::span_f32_avx512,
        attention::avx512::span_f16_avx512,
        attention::avx512::span_bf16_avx512,
        attention::avx512::span_i8_avx512,
    ],
    block: [
        Some(attention::avx512::block_f32_avx512),
        Some(attention::avx512::block_f16_avx512),
        Some(attention::avx512::block_bf16_avx512),
        Some(attention::avx512::block_i8_avx512),
    ],
    block_rounded: [None; CACHES],
    encode: [
        encode::scalar::encode_f32_scalar,
        encode::avx512::encode_f16_avx512,
        encode::avx512::encode_bf16_avx512,
        encode::avx512::encode_i8_avx512,
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
    sign_agreement: sign::avx512::sign_agreement_avx512,
    zero_unset: select::avx512::zero_unset_f32_avx512,
    mask_to_ids: select::avx512::mask_to_ids_avx512,
    // 512-bit vectors of f64 are no faster, and sometimes three times slower.
    sums: select::avx2::sums_f32_avx2,
    dot_i32: integer::avx512::dot_i32_avx512,
    axpy_i32: integer::avx512::axpy_i32_avx512,
    read: probe::avx512::read_avx512,
    peak_f32: probe::avx512::peak_f32_avx512,
    peak_bf16: probe::avx512::peak_f32_avx512,
    peak_int8: probe::avx2::peak_int8_avx2,
};

/// AVX-512 where the CPU has VNNI too.
pub(super) const AVX512_VNNI: Kernels = Kernels {
    name: "avx512 with VNNI",
    axpy_rows: by_type!(
        [
            axpy::avx512::axpy_rows_f32_avx512,
            axpy::avx512::axpy_rows_f16_avx512,
            axpy::avx512::axpy_rows_bf16_avx512,
            axpy::avx512_codes::axpy_int8_avx512,
        ],
        <axpy::avx512_codes::axpy_codes_avx512>
    ),
    dot_int8: dot_int8::avx512::dot_int8_avx512,
    few_int8: 20,
    dot_codes: by_type!([None, None, None, None], Some<dot_codes::avx512::dot_codes_avx512>),
    quantize: dot_int8::avx512::quantize_bytes_avx512,
    gemm: by_type!(
        [
            Some(gemm::avx512::gemm_f32_avx512),
            Some(gemm::avx512::gemm_f16_avx512),
            Some(gemm::avx512::gemm_bf16_avx512),
            Some(gemm::avx512::gemm_i8_avx512),
        ],
        Some<gemm::avx512::gemm_codes_avx512>
    ),
    peak_int8: probe::avx512::peak_int8_avx512,
    ..AVX512
};

/// AVX-512 where the CPU has VNNI and VBMI2, which puts small elements in their places.
pub(super) const AVX512_VBMI2: Kernels = Kernels {
    name: "avx512 with VNNI and VBMI2",
    expand: [
        expand::avx512::expand_4_bits_avx512,
        expand::avx512::expand_8_bits_avx512,
        expand::avx512::expand_16_bits_avx512,
        expand::avx512::expand_32_bits_avx512,
    ],
    bitmap_dot: {
        let mut kernels = [None; TYPES];
        kernels[DType::F32 as usize] = Some(BitmapDotKernel::in_registers(bitmap_dot::avx512::bitmap_dot_f32_avx512));
        kernels[DType::F16 as usize] = Some(BitmapDotKernel::in_registers(bitmap_dot::avx512::bitmap_dot_f16_avx512));
        kernels[DType::BF16 as usize] = Some(BitmapDotKernel::in_registers(bitmap_dot::avx512::bitmap_dot_bf16_avx512));
        kernels
    },
    bitmap_dot_int8: Some(bitmap_dot::avx512_int8::bitmap_dot_int8_avx512),
    bitmap_axpy: {
        let mut kernels = [None; TYPES];
        kernels[DType::F32 as usize] =
            Some(BitmapAxpyKernel::in_registers(bitmap_axpy::avx512::bitmap_axpy_f32_avx512));
        kernels[DType::F16 as usize] =
            Some(BitmapAxpyKernel::in_registers(bitmap_axpy::avx512::bitmap_axpy_f16_avx512));
        kernels[DType::BF16 as usize] =
            Some(BitmapAxpyKernel::in_registers(bitmap_axpy::avx512::bitmap_axpy_bf16_avx512));
        kernels[DType::I8 as usize] = Some(BitmapAxpyKernel::in_registers(bitmap_axpy::avx512::bitmap_axpy_i8_avx512));
        kernels
    },
    span: [
        attention::avx512_vbmi2::span_f32_avx512_vbmi2,
        attention::avx512_vbmi2::span_f16_avx512_vbmi2,
        attention::avx512_vbmi2::span_bf16_avx512_vbmi2,
        attention::avx512_vbmi2::span_i8_avx512_vbmi2,
    ],
    ..AVX512_VNNI
};

/// AVX-512 with VNNI, VBMI2 and BF16: many activations are rounded to bf16 for weights and caches in it.
pub(super) const AVX512_BF16: Kernels = Kernels {
    isa: Isa::Avx512Bf16,
    name: "avx512bf16",
    // The blocked product is twice as fast as that of `f32`, so fewer are worth reading rows as they are.
    dot_many: {
        let mut kernels = AVX512_VBMI2.dot_many;
        kernels[DType::BF16 as usize] = Some(RowsDotKernel::exact(dot::avx512::dot_many_bf16_avx512, 16));
        kernels
    },
    gemm: {
        let mut kernels = AVX512_VBMI2.gemm;
        kernels[DType::BF16 as usize] = Some(gemm::avx512_bf16::gemm_bf16_avx512_bf16);
        kernels
    },
    block_rounded: [
        None,
        None,
        Some(attention::avx512_bf16::block_bf16_avx512_bf16),
        Some(attention::avx512_bf16::block_i8_avx512_bf16),
    ],
    peak_bf16: probe::avx512::peak_bf16_avx512,
    ..AVX512_VBMI2
};
