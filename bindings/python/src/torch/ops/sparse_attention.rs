//! Attention over pruned and packed keys and values.

use std::ffi::CStr;

use sparrow_kernels::{AttentionShape, KvRows, KvView, SparseKv, SparseKvParts, SparseKvShape, SparseRows};

use crate::torch::argument::{contiguous, float, of_shape, of_type, same_type};
use crate::torch::fault::{Fault, Result};
use crate::torch::floats;
use crate::torch::machine::compute;
use crate::torch::scalar_type::ScalarType;
use crate::torch::shim::{self, Operator, Stack, Tensor};

fn four_dimensions(name: &str, t: &Tensor, what: &str) -> Result<[usize; 4]> {
    match *t.sizes() {
        [a, b, c, d] => Ok([a as usize, b as usize, c as usize, d as usize]),
        ref found => Err(Fault::Shape(format!("{name}: expected 4 dimensions {what}, found shape {found:?}"))),
    }
}

/// keys and values `[batch, kv_heads, tokens, head_dim]` of one type of floats, tokens a multiple of 64, to their blocks, uint8
/// `[batch, kv_heads, tokens / 64 + 1, bytes]`; the last block of a head is room that kernels may read. Of each head's 64 tokens
/// the `floor(sparsity · 64 · head_dim)` elements of smallest magnitude are dropped.
///
/// Of a block: a bitmap `[64, ⌈head_dim / 32⌉]` of 32-bit words, bit i mod 32 of word i / 32 where element i is kept; then the
/// elements kept, token after token.
pub struct PackKv;

impl Operator for PackKv {
    const NAME: &'static CStr = c"pack_kv";
    const SCHEMA: &'static CStr = c"pack_kv(Tensor keys, Tensor values, float key_sparsity, float value_sparsity) \
        -> (Tensor key_blocks, Tensor value_blocks)";

    fn call(stack: &mut Stack) -> Result<()> {
        let (keys, values) = (stack.tensor()?, stack.tensor()?);
        let sparsities = [("key_sparsity", stack.float()?), ("value_sparsity", stack.float()?)];
        for (name, sparsity) in sparsities {
            if !(0.0..=1.0).contains(&sparsity) {
                return Err(Fault::Option(format!("{name}: expected a fraction in 0..1, found {sparsity}")));
            }
        }
        let dtype = float("keys", &keys)?;
        let sizes = four_dimensions("keys", &keys, "[batch, kv_heads, tokens, head_dim]")?;
        same_type("keys", keys.scalar_type(), "values", values.scalar_type())?;
        of_shape("values", &values, &sizes, "of keys")?;
        let [batch, kv_heads, tokens, head_dim] = sizes;
        if !tokens.is_multiple_of(SparseKv::BLOCK) {
            return Err(Fault::Shape(format!(
                "keys: expected a multiple of {} tokens, found {tokens}",
                SparseKv::BLOCK
            )));
        }
        if kv_heads == 0 || head_dim == 0 {
            return Err(Fault::Shape(format!("keys: expected heads and elements, found shape {sizes:?}")));
        }
        let [(_, key_sparsity), (_, value_sparsity)] = sparsities.map(|(name, sparsity)| (name, sparsity as f32));
        let (sinks, tail) = (0, 0);
        // Room for a block where there are no tokens, to know its size.
        let capacity = tokens.max(SparseKv::BLOCK);
        let shape = SparseKvShape { dtype, kv_heads, head_dim, capacity, key_sparsity, value_sparsity, sinks, tail };
        let compute = compute()?;
        let [in_keys, in_values] = [floats::read(compute, "keys", &keys)?, floats::read(compute, "values", &values)?];
        let (count, stored) = (tokens / SparseKv::BLOCK, kv_heads * tokens * head_dim);
        let bytes = SparseKv::new(shape).blocks().map(|blocks| blocks.len() / (kv_heads * capacity / SparseKv::BLOCK));
        let mut out = [0, 1].map(|i| {
            let sizes = [batch as i64, kv_heads as i64, count as i64 + 1, bytes[i] as i64];
            Tensor::empty(&sizes, ScalarType::UInt8)
        });
        for row in 0..batch {
            let mut cache = SparseKv::new(shape);
            let of_row = |all: &[f32]| token_major(&all[row * stored..][..stored], kv_heads, tokens, head_dim);
            cache.store(compute, 0, &of_row(&in_keys), &of_row(&in_values));
            cache.pack(compute, None);
            for ((out, blocks), bytes) in out.iter_mut().zip(cache.blocks()).zip(bytes) {
                let Ok(out) = out else { continue };
                let heads = (count + 1) * bytes;
                let out = &mut out.bytes_mut()[row * kv_heads * heads..][..kv_heads * heads];
                let room = capacity / SparseKv::BLOCK * bytes;
                for (to, from) in out.chunks_exact_mut(heads).zip(blocks.chunks_exact(room)) {
                    let (to, unused) = to.split_at_mut(count * bytes);
                    to.copy_from_slice(&from[..count * bytes]);
                    unused.fill(0);
                }
            }
        }
        let [key_blocks, value_blocks] = out;
        stack.give(key_blocks?.done())?;
        stack.give(value_blocks?.done())
    }
}

/// `[heads, tokens, d]` as `[tokens, heads, d]`.
fn token_major(x: &[f32], heads: usize, tokens: usize, d: usize) -> Vec<f32> {
    let rows = (0..tokens).flat_map(|token| (0..heads).map(move |head| head * tokens + token));
    rows.flat_map(|row| x[row * d..][..d].iter().copied()).collect()
}

/// softmax(q · keysᵀ · scale) · values for one token of each sequence: q `[batch, heads, head_dim]`; blocks as [`PackKv`] makes
/// them, of which the first `lengths[:, 0]` of each head are in use; keys and values `[batch, kv_heads, room, head_dim]` of the
/// type of q, the tokens after those in blocks, of which `lengths[:, 1]` are in use; lengths int64 `[batch, 2]`. Returns
/// `[batch, heads, head_dim]`. Scores become cap · tanh(score / cap) with `soft_cap`. Error: that of [`Compute::attention`].
///
/// [`Compute::attention`]: sparrow_kernels::Compute::attention
pub struct SparseAttentionDecode;

impl Operator for SparseAttentionDecode {
    const NAME: &'static CStr = c"sparse_attention_decode";
    const SCHEMA: &'static CStr = c"sparse_attention_decode(Tensor q, Tensor key_blocks, Tensor value_blocks, \
        Tensor keys, Tensor values, Tensor lengths, *, float? scale=None, float? soft_cap=None, \
        bool check_invariants=True) -> Tensor";

    fn call(stack: &mut Stack) -> Result<()> {
        let (q, key_blocks, value_blocks) = (stack.tensor()?, stack.tensor()?, stack.tensor()?);
        let (keys, values, lengths) = (stack.tensor()?, stack.tensor()?, stack.tensor()?);
        let (scale, soft_cap) = (stack.optional_float()?, stack.optional_float()?);
        let check_invariants = stack.bool()?;
        let dtype = float("q", &q)?;
        let &[batch, heads, head_dim] = q.sizes() else {
            let found = q.sizes();
            return Err(Fault::Shape(format!("q: expected shape [batch, heads, head_dim], found {found:?}")));
        };
        let [batch, heads, head_dim] = [batch as usize, heads as usize, head_dim as usize];
        let [_, kv_heads, room, _] = four_dimensions("keys", &keys, "[batch, kv_heads, room, head_dim]")?;
        if kv_heads == 0 || heads % kv_heads != 0 {
            return Err(Fault::Shape(format!(
                "q: expected a multiple of the {kv_heads} key heads, found {heads} heads"
            )));
        }
        for (name, t) in [("keys", &keys), ("values", &values)] {
            same_type("q", q.scalar_type(), name, t.scalar_type())?;
            of_shape(name, t, &[batch, kv_heads, room, head_dim], "[batch, kv_heads, room, head_dim]")?;
        }
        let [_, _, room_blocks, _] = four_dimensions("key_blocks", &key_blocks, "[batch, kv_heads, blocks, bytes]")?;
        for (name, t) in [("key_blocks", &key_blocks), ("value_blocks", &value_blocks)] {
            of_type(name, t, ScalarType::UInt8)?;
            let [_, _, _, bytes] = four_dimensions(name, t, "[batch, kv_heads, blocks, bytes]")?;
            of_shape(name, t, &[batch, kv_heads, room_blocks, bytes], "[batch, kv_heads, blocks, bytes]")?;
        }
        of_type("lengths", &lengths, ScalarType::Int64)?;
        of_shape("lengths", &lengths, &[batch, 2], "[batch, 2]")?;
        let parts = [
            contiguous("key_blocks", &key_blocks)?,
            contiguous("value_blocks", &value_blocks)?,
            contiguous("keys", &keys)?,
            contiguous("values", &values)?,
        ];
        let lengths = contiguous("lengths", &lengths)?.as_chunks().0;
        let lengths = lengths.iter().map(|&length| usize::try_from(i64::from_le_bytes(length)).unwrap_or(usize::MAX));
        let lengths: Vec<usize> = lengths.collect();
        let mut caches: Vec<SparseRows> = Vec::with_capacity(batch);
        for (row, of_row) in lengths.chunks_exact(2).enumerate() {
            let [key_blocks, value_blocks, keys, values] = parts.map(|part| {
                let bytes = part.len() / batch;
                &part[row * bytes..][..bytes]
            });
            let (blocks, tail) = (of_row[0], of_row[1]);
            let cache = SparseKvParts {
                dtype,
                kv_heads,
                head_dim,
                blocks,
                room_blocks,
                key_blocks,
                value_blocks,
                tail,
                room,
                keys,
                values,
            };
            let cache = if check_invariants { SparseRows::new(cache) } else { shim::trusted_cache(cache) };
            caches.push(cache.map_err(|error| {
                Fault::Shape(format!("key_blocks, value_blocks, keys, values, lengths of row {row}: {error}"))
            })?);
        }
        let scale = scale.unwrap_or_else(|| 1.0 / (head_dim as f64).sqrt()) as f32;
        let soft_cap = soft_cap.map(|cap| cap as f32);
        let shape = AttentionShape { heads, kv_heads, head_dim, scale, soft_cap };
        let compute = compute()?;
        let in_q = floats::read(compute, "q", &q)?;
        let view = |row: usize| {
            let (blocks, tail) = (lengths[2 * row], lengths[2 * row + 1]);
            KvView { rows: KvRows::Sparse(caches[row]), start: 0, len: blocks * SparseKv::BLOCK + tail }
        };
        stack.give(floats::write(compute, q.sizes(), &q, |out| compute.attention(&shape, &in_q, batch, &view, out))?)
    }
}
