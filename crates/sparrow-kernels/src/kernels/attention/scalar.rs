//! Attention over a span in portable Rust, one position after the other.

use super::span::Span;
use crate::dtype::{DType, decode};

/// # Safety
/// See [`SpanFn`](super::span::SpanFn).
unsafe fn span(a: &Span, dtype: DType) {
    let (d, group) = (a.head_dim, a.group);
    // SAFETY: q and out are [group, head_dim], stats [group], and the scratch memory has room for one widened row.
    let (q, out, stats, row) = unsafe {
        (
            std::slice::from_raw_parts(a.q, group * d),
            std::slice::from_raw_parts_mut(a.out, group * d),
            std::slice::from_raw_parts_mut(a.stats, group),
            std::slice::from_raw_parts_mut(a.scratch, d),
        )
    };
    out.fill(0.0);
    stats.fill([f32::NEG_INFINITY, 0.0]);
    for piece in &a.pieces {
        let mut first = 0;
        while first < piece.count {
            // SAFETY: position `first` is in the piece.
            let (count, keys, values) = unsafe { a.dense_rows(piece, first) };
            for j in 0..count {
                // SAFETY: these are `count` rows.
                let (key, value) = unsafe {
                    let at = j * a.row_bytes;
                    (
                        std::slice::from_raw_parts(keys.add(at), a.row_bytes),
                        std::slice::from_raw_parts(values.add(at), a.row_bytes),
                    )
                };
                for t in 0..group {
                    let (q, out, [largest, total]) = (&q[t * d..][..d], &mut out[t * d..][..d], &mut stats[t]);
                    decode(dtype, key, row);
                    let product: f64 = q.iter().zip(&*row).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                    let mut score = product as f32 * a.scale;
                    if let Some(cap) = a.soft_cap {
                        score = cap * (score / cap).tanh();
                    }
                    if score > *largest {
                        let shrink = (*largest - score).exp();
                        *total *= shrink;
                        out.iter_mut().for_each(|v| *v *= shrink);
                        *largest = score;
                    }
                    // Nothing but negative infinities so far: a weight of 0.
                    let weight = (score - if *largest == f32::NEG_INFINITY { 0.0 } else { *largest }).exp();
                    *total += weight;
                    decode(dtype, value, row);
                    for (out, v) in out.iter_mut().zip(&*row) {
                        *out += weight * v;
                    }
                }
            }
            first += count;
        }
    }
}

macro_rules! kernels {
    ($($name:ident: $dtype:expr;)*) => {$(
        /// # Safety
        /// See [`SpanFn`](super::span::SpanFn).
        pub(crate) unsafe fn $name(a: &Span) {
            // SAFETY: the contract is the caller's.
            unsafe { span(a, $dtype) }
        }
    )*};
}

kernels! {
    span_f32_scalar: DType::F32;
    span_f16_scalar: DType::F16;
    span_bf16_scalar: DType::BF16;
    span_i8_scalar: DType::I8;
}
