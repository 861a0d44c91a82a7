//! The numbers of Sparrow: dense and sparse matrix kernels for language models on CPUs, chosen at run time.
//!
//! Start with [`Compute`]: it holds the kernels of the best instruction set tier ([`Isa`]) and a thread [`Pool`], and
//! every operation is a method of it. No models here, and no files but those by which the system says what it grants.
//!
//! | operation | equation |
//! |---|---|
//! | [`Compute::linear`] | out = x·Wᵀ + b, weights `[out, in]` |
//! | [`Compute::linear_in_out`] | out = x·W + b, weights `[in, out]`, over some inputs only |
//! | [`Compute::sparse_mlp`] | the active neurons of an MLP |
//! | [`Compute::sparse_mlp_integer`] | the same in exact integers |
//! | [`Compute::activate`], [`Compute::gated`] | a(x), a(gate)·up |
//! | [`Compute::mask_above`], [`Compute::mask_to_ids`], [`Compute::zero_unset`], [`Compute::replace_unset`] | which neurons are active |
//! | [`Compute::kth_largest`], [`Compute::mean_std`] | where to draw the line |
//! | [`union_masks`], [`count_ones`], [`mask_words`] | sets of neurons |
//! | [`Compute::pack_signs`], [`Compute::weight_signs`] | sign bits of x and of W |
//! | [`Compute::sign_agreement`] | the sign of a dot product, estimated from sign bits |
//! | [`Compute::rms_norm`], [`Compute::layer_norm`] | before the layers |
//! | [`Compute::add_assign`], [`Compute::rope`] | around the layers |
//! | [`Compute::store_kv`], [`SparseKv`] | caches of keys and values |
//! | [`Compute::attention`] | softmax(q·kᵀ · scale) · v |
//! | [`Compute::softmax`], [`Compute::argmax`] | logits |
//! | [`decode`], [`encode`], [`quantize`], [`transpose`] | stored elements ([`DType`], [`Matrix`]) |
//! | [`BlockFormat`] | blocks of GGUF files |
//! | [`assemble_int8`], [`assemble_int4`] | rows of quantised types, from their parts |
//! | [`pack`], [`count_stored`], [`fill_bitmap`], [`unpack`] | weights with many zeros ([`Bitmap`], [`Stored`]) |
//! | [`default_threads`], [`cpu_quota`], [`available_memory`], [`start_thread`] | what the system grants |
//! | [`read_bandwidth`], [`BandwidthProbe`], [`peak`] | what the machine can do at best |
//!
//! Activations are `f32`, row-major; weights are [`Matrix`] views of bytes at any alignment, in any [`DType`];
//! accumulation is in `f32`. Each operation states its shapes, its panics and its rounding error, which the tests check
//! for every tier that the CPU has.
//!
//! Inside, every folder sees only those above it:
//!
//! | folder | purpose |
//! |---|---|
//! | `system` | what the system grants this process |
//! | `dtype` | element types, how rows lie in memory, views of weights |
//! | `simd` | loads, sums and tiles: what the kernels of one tier share |
//! | `parallel` | threads, scratch memory, slices written by several tasks |
//! | `rows` | rows of weights and of activations as kernels see them |
//! | `kv` | caches of keys and values, and what attention sees of them |
//! | `kernels` | the raw loops: a folder for each, in it a file for each tier |
//! | `table` | which kernels a tier has |
//! | `compute` | [`Compute`]: a table and threads |
//! | `operations` | the methods of [`Compute`]: shapes are checked here, and work is split |
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

mod allocator;
mod compute;
mod cpu;
mod dtype;
mod kernels;
mod kv;
mod operations;
mod parallel;
mod rows;
mod simd;
mod system;
mod table;

pub use allocator::ExitWhenFull;
pub use compute::Compute;
pub use cpu::{Isa, IsaUnavailable, TierStatus, UnknownIsa, tiers};
pub use dtype::{
    Bitmap, BitmapError, BitmapParts, BlockFormat, DType, Matrix, Stored, UnknownDType, assemble_int4, assemble_int8,
    decode, encode,
};
pub use kernels::activation::Activation;
pub use kernels::attention::AttentionShape;
pub use kv::{DenseKv, KvMut, KvRows, KvView, SparseKv, SparseKvError, SparseKvParts, SparseKvShape, SparseRows};
pub use operations::{
    BandwidthProbe, BitmapSizes, Integer, IntegerActivation, IntegerMlp, IntegerOverflow, IntegerStage, LinearPart,
    PackedBitmap, Peak, Pooled, SparseMlp, SparseMlpInputs, count_ones, count_stored, fill_bitmap, mask_words, pack,
    peak, quantize, read_bandwidth, transpose, union_masks, unpack,
};
pub use parallel::{Pool, start_thread};
pub use system::{available_memory, cpu_quota, default_threads};
