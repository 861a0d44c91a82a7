//! AVX2.

use super::kernels::Kernels;
use crate::cpu::Isa;
use crate::dtype::{CACHES, TYPES, by_type};
use crate::kernels::dot::many;
use crate::kernels::{
    activation, attention, axpy, decode_codes, dot, dot_codes, dot_int8, encode, expand, gemm, integer, norm, probe,
    rope, select, sign, softmax,
};
use crate::rows::FEW;

pub(super) const AVX2: Kernels = Kernels {
    isa: Isa::Avx2,
    name: "avx2",
    dot_rows: [dot::avx2::dot_rows_f32_avx2, dot::avx2::dot_rows_f16_avx2, dot::avx2::dot_rows_bf16_avx2],
    axpy_rows: by_type!(
        [
            axpy::avx2::axpy_rows_f32_avx2,
            axpy::avx2::axpy_rows_f16_avx2,
            axpy::avx2::axpy_rows_bf16_avx2,
            axpy::avx2::axpy_rows_i8_avx2,
        ],
        <axpy::avx2_codes::axpy_codes_avx2>
    ),
    dot_many: many(dot::avx2::dot_many_f32_avx2, dot::avx2::dot_many_f16_avx2, dot::avx2::dot_many_bf16_avx2),
    dot_int8: dot_int8::avx2::dot_int8_avx2,
    few_int8: 16,
    dot_codes: by_type!([None, None, None, None], Some<dot_codes::avx2::dot_codes_avx2>),
    few_codes: 12,
    decode_codes: by_type!([None, None, None, None], Some<decode_codes::avx2::decode_codes_avx2>),
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
    gemm: by_type!(
        [
            Some(gemm::avx2::gemm_f32_avx2),
            Some(gemm::avx2::gemm_f16_avx2),
            Some(gemm::avx2::gemm_bf16_avx2),
            Some(gemm::avx2::gemm_i8_avx2),
        ],
        Some<gemm::avx2::gemm_codes_avx2>
    ),
    span: [
        attention::avx2::span_f32_avx2,
        attention::avx2::span_f16_avx2,
        attention::avx2::span_bf16_avx2,
        attention::avx2::span_i8_avx2,
    ],
    block: [
        Some(attention::avx2::block_f32_avx2),
        Some(attention::avx2::block_f16_avx2),
        Some(attention::avx2::block_bf16_avx2),
        Some(attention::avx2::block_i8_avx2),
    ],
    block_rounded: [None; CACHES],
    encode: [
        encode::scalar::encode_f32_scalar,
        encode::avx2::encode_f16_avx2,
        encode::avx2::encode_bf16_avx2,
        encode::avx2::encode_i8_avx2,
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
    sign_agreement: sign::avx2::sign_agreement_avx2,
    zero_unset: select::avx2::zero_unset_f32_avx2,
    mask_to_ids: select::scalar::mask_to_ids_scalar,
    sums: select::avx2::sums_f32_avx2,
    dot_i32: integer::avx2::dot_i32_avx2,
    axpy_i32: integer::avx2::axpy_i32_avx2,
    read: probe::avx2::read_avx2,
    peak_f32: probe::avx2::peak_f32_avx2,
    peak_bf16: probe::avx2::peak_f32_avx2,
    peak_int8: probe::avx2::peak_int8_avx2,
};

/// AVX2 where the CPU has AVX-VNNI too: desktop CPUs without AVX-512.
pub(super) const AVX2_VNNI: Kernels = Kernels {
    name: "avx2 with AVX-VNNI",
    few_int8: 10,
    few_codes: FEW,
    gemm: by_type!(
        [
            Some(gemm::avx2::gemm_f32_avx2),
            Some(gemm::avx2::gemm_f16_avx2),
            Some(gemm::avx2::gemm_bf16_avx2),
            Some(gemm::avx2_vnni::gemm_i8_avx2_vnni),
        ],
        Some<gemm::avx2_vnni::gemm_codes_avx2_vnni>
    ),
    peak_int8: probe::avx2::peak_int8_avx2_vnni,
    ..AVX2
};
