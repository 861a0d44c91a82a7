//! The numbers of Sparrow: dense and sparse matrix kernels for language models on CPUs, chosen at run time.
//!
//! Start with [`Compute`]: it holds the kernels of the best instruction set tier ([`Isa`]) and a thread [`Pool`], and every
//! operation is a method of it. No files, no models here.
//!
//! | operation | equation |
//! |---|---|
//! | [`Compute::linear`], [`Compute::linear_stored`] | out = x·Wᵀ + b, weights `[out, in]`; results in `f32` or any type |
//! | [`Compute::linear_in_out`] | out = x·W + b, weights `[in, out]`, over some inputs only |
//! | [`Compute::sparse_mlp`], [`Compute::sparse_mlp_integer`] | the active neurons of an MLP, in floating point or exact integers |
//! | [`Compute::activate`], [`Compute::gated`] | a(x), a(gate)·up |
//! | [`Compute::mask_above`], [`Compute::mask_nonzero`], [`Compute::zero_unset`], [`Compute::mask_to_ids`], [`Compute::kth_largest`], [`Compute::mean_std`], [`union_masks`], [`difference_masks`], [`count_ones`] | which neurons are active |
//! | [`Compute::pack_signs`], [`Compute::weight_signs`], [`Compute::sign_agreement`] | the sign of a dot product, estimated from sign bits |
//! | [`Compute::rms_norm`], [`Compute::layer_norm`], [`Compute::add_assign`], [`Compute::rope`] | around the layers |
//! | [`Compute::store_kv`], [`SparseKv`], [`Compute::attention`], [`Compute::softmax`], [`Compute::argmax`] | attention and logits |
//! | [`decode`], [`encode`], [`quantize`], [`transpose`], [`assemble_int8`], [`assemble_int4`] | stored elements ([`DType`], [`Matrix`]) |
//! | [`pack`], [`count_stored`], [`fill_bitmap`], [`unpack`] | weights with many zeros ([`Bitmap`], [`Stored`]) |
//! | [`read_bandwidth`], [`BandwidthProbe`], [`peak`] | what the machine can do at best |
//!
//! Activations are `f32`, row-major; weights are [`Matrix`] views of bytes at any alignment, in any [`DType`]; accumulation
//! is in `f32`. Each operation states its shapes, its panics and its rounding error, which `tests/conformance.rs` checks for
//! every tier that the CPU has.
//!
//! ```
//! use sparrow_kernels::{Compute, DType, LinearPart, Matrix, encode};
//!
//! let compute = Compute::new(None);
//! let mut bytes = [0; 2 * 3 * 2];
//! encode(DType::BF16, &[1.0, 2.0, 3.0, 0.0, -1.0, 0.5], &mut bytes);
//! let mut out = [0.0; 2];
//! let part = LinearPart { weights: Matrix::new(DType::BF16, 2, 3, &bytes).into(), bias: None, out: &mut out };
//! compute.linear(&[1.0, 1.0, 2.0], 1, &mut [part]);
//! assert_eq!(out, [9.0, 0.0]);
//! ```

// Kernels index several arrays by the same lane.
#![allow(clippy::needless_range_loop)]

mod compute;
mod cpu;
mod dtype;
mod ops;
mod pool;
mod probe;
mod scratch;
mod shared_mut;
mod simd;
mod table;

pub use compute::Compute;
pub use cpu::{Isa, IsaUnavailable, TierStatus, UnknownIsa, tiers};
pub use dtype::{
    Bitmap, BitmapError, BitmapParts, DType, Matrix, Stored, UnknownDType, assemble_int4, assemble_int8, decode, encode,
};
pub use ops::activation::Activation;
pub use ops::attention::{AttentionShape, DenseKv, KvRows, KvView};
pub use ops::encode::KvMut;
pub use ops::expand::unpack;
pub use ops::linear::LinearPart;
pub use ops::pack::{BitmapSizes, PackedBitmap, count_stored, fill_bitmap, pack};
pub use ops::quantize::quantize;
pub use ops::select::{count_ones, difference_masks, mask_words, union_masks};
pub use ops::sparse_kv::{SparseKv, SparseKvShape};
pub use ops::sparse_mlp::{Packed, SparseMlp};
pub use ops::sparse_mlp_integer::{Integer, IntegerActivation, IntegerMlp, IntegerOverflow, IntegerStage};
pub use ops::transpose::transpose;
pub use pool::Pool;
pub use probe::{BandwidthProbe, Peak, peak, read_bandwidth};
