//! Portable Rust.

use super::kernels::Kernels;
use crate::cpu::Isa;
use crate::dtype::{CACHES, TYPES, by_type};
use crate::kernels::{
    activation, attention, axpy, decode_codes, dot, dot_codes, dot_int8, encode, expand, integer, norm, probe, rope,
    select, sign, softmax,
};
use crate::rows::FEW;
use crate::rows::int16::quantize_apart;

pub(super) const SCALAR: Kernels = Kernels {
    isa: Isa::Scalar,
    name: "scalar",
    dot_rows: [dot::scalar::dot_rows_f32_scalar, dot::scalar::dot_rows_f16_scalar, dot::scalar::dot_rows_bf16_scalar],
    axpy_rows: by_type!(
        [
            axpy::scalar::axpy_rows_f32_scalar,
            axpy::scalar::axpy_rows_f16_scalar,
            axpy::scalar::axpy_rows_bf16_scalar,
            axpy::scalar::axpy_rows_i8_scalar,
        ],
        <axpy::scalar::axpy_codes_scalar>
    ),
    dot_many: [None; TYPES],
    dot_int8: dot_int8::scalar::dot_int8_scalar,
    few_int8: FEW,
    dot_codes: by_type!([None, None, None, None], Some<dot_codes::scalar::dot_codes_scalar>),
    few_codes: FEW,
    decode_codes: by_type!([None, None, None, None], Some<decode_codes::scalar::decode_codes_scalar>),
    quantize: quantize_apart,
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
    ],
    block: [None; CACHES],
    block_rounded: [None; CACHES],
    encode: [
        encode::scalar::encode_f32_scalar,
        encode::scalar::encode_f16_scalar,
        encode::scalar::encode_bf16_scalar,
        encode::scalar::encode_i8_scalar,
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
    zero_unset: select::scalar::zero_unset_f32_scalar,
    mask_to_ids: select::scalar::mask_to_ids_scalar,
    sign_agreement: sign::scalar::sign_agreement_scalar,
    sums: select::scalar::sums_f32_scalar,
    dot_i32: integer::scalar::dot_i32_scalar,
    axpy_i32: integer::scalar::axpy_i32_scalar,
    read: probe::scalar::read_scalar,
    peak_f32: probe::scalar::peak_f32_scalar,
    peak_bf16: probe::scalar::peak_f32_scalar,
    peak_int8: probe::scalar::peak_int8_scalar,
};
