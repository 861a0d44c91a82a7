//! AMX, over AVX-512 with BF16, VNNI and VBMI2.

use super::avx512::AVX512_BF16;
use super::kernels::Kernels;
use crate::cpu::Isa;
use crate::dtype::{DType, TYPES};
use crate::kernels::bitmap_axpy::BitmapAxpyKernel;
use crate::kernels::bitmap_dot::BitmapDotKernel;
use crate::kernels::dot::RowsDotKernel;
use crate::kernels::gemm::GemmFn;
use crate::kernels::{attention, bitmap_axpy, bitmap_dot, dot, gemm, probe};
use crate::rows::FEW;

pub(super) const AMX: Kernels = Kernels {
    isa: Isa::Amx,
    name: "amx",
    few_int8: FEW,
    few_codes: FEW,
    dot_many: {
        let mut kernels = AVX512_BF16.dot_many;
        kernels[DType::BF16 as usize] = Some(RowsDotKernel { run: dot::amx::dot_bf16_amx, tokens: 32, few: 96 });
        kernels
    },
    bitmap_dot: {
        let mut kernels = AVX512_BF16.bitmap_dot;
        kernels[DType::BF16 as usize] =
            Some(BitmapDotKernel { run: bitmap_dot::amx::bitmap_dot_bf16_amx, tokens: 32, few: 96 });
        kernels
    },
    bitmap_axpy: {
        let mut kernels = AVX512_BF16.bitmap_axpy;
        kernels[DType::BF16 as usize] = Some(BitmapAxpyKernel { run: bitmap_axpy::amx::bitmap_axpy_bf16_amx, few: 16 });
        kernels
    },
    gemm: {
        let mut kernels = [Some(gemm::amx::gemm_codes_amx as GemmFn); TYPES];
        kernels[DType::F32 as usize] = Some(gemm::avx512::gemm_f32_avx512);
        kernels[DType::F16 as usize] = Some(gemm::avx512::gemm_f16_avx512);
        kernels[DType::BF16 as usize] = Some(gemm::amx::gemm_bf16_amx);
        kernels[DType::I8 as usize] = Some(gemm::amx_int8::gemm_i8_amx);
        kernels
    },
    block_rounded: [None, None, Some(attention::amx::block_bf16_amx), Some(attention::amx::block_i8_amx)],
    peak_bf16: probe::amx::peak_bf16_amx,
    peak_int8: probe::amx::peak_int8_amx,
    ..AVX512_BF16
};
