//! Between torch's floats and the `f32` that kernels compute in.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use sparrow_kernels::{Compute, DType, decode, encode};

use super::argument::{float, is_contiguous};
use super::fault::Result;
use super::shim::{Tensor, as_floats, as_floats_mut};

/// Elements that one thread converts at a time.
const CHUNK: usize = 16 * 1024;

/// The elements of a tensor of floats in order, whatever its strides: where they are, if they are `f32` already.
pub fn read<'a>(compute: &Compute, name: &str, t: &'a Tensor) -> Result<Cow<'a, [f32]>> {
    let dtype = float(name, t)?;
    let bytes = in_order(t);
    if let (DType::F32, Cow::Borrowed(bytes)) = (dtype, &bytes)
        && let Some(floats) = as_floats(bytes)
    {
        return Ok(Cow::Borrowed(floats));
    }
    let size = dtype.row_bytes(1);
    let mut floats = vec![0.0; bytes.len() / size];
    in_chunks(compute, &bytes, CHUNK * size, &mut floats, CHUNK, &|from, to| decode(dtype, from, to));
    Ok(Cow::Owned(floats))
}

/// A new tensor of a type of floats, which `fill` computes.
pub fn write(compute: &Compute, sizes: &[i64], like: &Tensor, fill: impl FnOnce(&mut [f32])) -> Result<Tensor> {
    let dtype = float("x", like)?;
    let mut out = Tensor::empty(sizes, like.scalar_type())?;
    let bytes = out.bytes_mut();
    if dtype == DType::F32
        && let Some(floats) = as_floats_mut(bytes)
    {
        fill(floats);
        return Ok(out.done());
    }
    let size = dtype.row_bytes(1);
    let mut floats = vec![0.0; bytes.len() / size];
    fill(&mut floats);
    in_chunks(compute, &floats, CHUNK, bytes, CHUNK * size, &|from, to| encode(dtype, from, to));
    Ok(out.done())
}

/// The elements of a tensor one after another, whatever its strides: where they are, if they lie so.
pub fn in_order(t: &Tensor) -> Cow<'_, [u8]> {
    if is_contiguous(t) { Cow::Borrowed(t.bytes()) } else { Cow::Owned(gather(t)) }
}

fn gather(t: &Tensor) -> Vec<u8> {
    let size = t.scalar_type().size();
    let (sizes, strides, bytes) = (t.sizes(), t.strides(), t.bytes());
    let count: i64 = sizes.iter().product();
    let mut gathered = Vec::with_capacity(count as usize * size);
    let mut index = vec![0; sizes.len()];
    for _ in 0..count {
        let at: i64 = index.iter().zip(strides).map(|(i, stride)| i * stride).sum();
        gathered.extend_from_slice(&bytes[at as usize * size..][..size]);
        for (i, &size) in index.iter_mut().zip(sizes).rev() {
            *i += 1;
            if *i < size {
                break;
            }
            *i = 0;
        }
    }
    gathered
}

/// Calls `convert` with chunks of both slices, in parallel where there are several.
fn in_chunks<A: Sync, B: Send>(
    compute: &Compute,
    from: &[A],
    from_chunk: usize,
    to: &mut [B],
    to_chunk: usize,
    convert: &(dyn Fn(&[A], &mut [B]) + Sync),
) {
    if from.len() <= from_chunk {
        convert(from, to);
        return;
    }
    let chunks: Vec<Mutex<(&[A], &mut [B])>> =
        from.chunks(from_chunk).zip(to.chunks_mut(to_chunk)).map(Mutex::new).collect();
    compute.pool().run(chunks.len(), &|i| {
        let mut chunk = chunks[i].lock().unwrap_or_else(PoisonError::into_inner);
        let (from, to) = &mut *chunk;
        convert(from, to);
    });
}
