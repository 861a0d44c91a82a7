//! Rotary position embedding with the bounds checks out of the loop, for the compiler to vectorise.

#[inline(always)]
pub(super) fn rope(x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    for head in x.chunks_exact_mut(head_dim) {
        let (low, high) = head[..2 * half].split_at_mut(half);
        for (((a, b), &c), &s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
        }
    }
}
