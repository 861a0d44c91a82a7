//! Pruning of cached keys and values: a block of tokens packed, the smallest elements left out.

use super::select::kth::kth_largest;
use crate::dtype::DType;
use crate::dtype::decode;
use crate::dtype::layout::int8_scale_at;
use crate::kv::{BLOCK, BlockLayout};

/// Prunes and packs the rows of `BLOCK` tokens, `row_bytes` each: the `kept` elements of largest magnitude, times the
/// size of their channel where there are `sizes`, stay, NaN above all, of equal ones those that come first. `scratch`
/// has room for two values per element and one more.
pub(crate) fn prune(layout: BlockLayout, rows: &[u8], sizes: Option<&[f32]>, scratch: &mut [f32], block: &mut [u8]) {
    let (d, size, row_bytes) = (layout.head_dim, layout.size(), layout.dtype.row_bytes(layout.head_dim));
    let (magnitudes, scratch) = scratch.split_at_mut(BLOCK * d);
    for (row, magnitudes) in rows.chunks_exact(row_bytes).zip(magnitudes.chunks_exact_mut(d)) {
        decode(layout.dtype, row, magnitudes);
        if let Some(sizes) = sizes {
            magnitudes.iter_mut().zip(sizes).for_each(|(v, size)| *v *= size);
        }
        magnitudes.iter_mut().for_each(|v| *v = if v.is_nan() { f32::INFINITY } else { v.abs() });
    }
    let threshold = if layout.kept == 0 { f32::INFINITY } else { kth_largest(magnitudes, layout.kept, scratch) };
    // Of those at the threshold.
    let mut ties = layout.kept.saturating_sub(magnitudes.iter().filter(|&&v| v > threshold).count());
    let (head, elements) = block.split_at_mut(layout.elements_at());
    let (scales, masks) = head.split_at_mut(layout.masks_at());
    let mut at = 0;
    for (token, row) in rows.chunks_exact(row_bytes).enumerate() {
        if layout.dtype == DType::I8 {
            let scale = &row[int8_scale_at(d)..][..size_of::<f32>()];
            scales[token * size_of::<f32>()..][..size_of::<f32>()].copy_from_slice(scale);
        }
        let mask = &mut masks[token * layout.mask_bytes()..][..layout.mask_bytes()];
        mask.fill(0);
        for (i, &magnitude) in magnitudes[token * d..(token + 1) * d].iter().enumerate() {
            let tied = magnitude == threshold && ties > 0;
            ties -= usize::from(tied);
            if magnitude > threshold || tied {
                mask[i / 8] |= 1 << (i % 8);
                elements[at..at + size].copy_from_slice(&row[i * size..(i + 1) * size]);
                at += size;
            }
        }
    }
}
