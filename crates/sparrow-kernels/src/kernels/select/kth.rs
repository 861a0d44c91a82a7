//! Selection of the k-th largest value: a histogram of the leading bits, then a selection within one bin.

/// Leading bits of a key that choose its bin.
const BITS: u32 = 11;

/// An integer in the order of the values, NaN below −∞.
fn key(value: f32) -> u32 {
    let value = if value.is_nan() { f32::NEG_INFINITY } else { value };
    let bits = value.to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

fn bin(value: f32) -> usize {
    (key(value) >> (32 - BITS)) as usize
}

/// `k` in `1..=scores.len()`; `scratch` has room for one value more than there are scores.
pub(crate) fn kth_largest(scores: &[f32], k: usize, scratch: &mut [f32]) -> f32 {
    // Two histograms in turn: neighbours often fall into one bin, whose count is then not ready yet.
    let mut counts = [[0u32; 1 << BITS]; 2];
    let (pairs, rest) = scores.as_chunks::<2>();
    for &[first, second] in pairs {
        counts[0][bin(first)] += 1;
        counts[1][bin(second)] += 1;
    }
    rest.iter().for_each(|&value| counts[0][bin(value)] += 1);
    let (mut chosen, mut left) = ((1 << BITS) - 1, k);
    let count = |bin: usize| (counts[0][bin] + counts[1][bin]) as usize;
    while left > count(chosen) {
        left -= count(chosen);
        chosen -= 1;
    }
    // Every score is written, and kept if it is in the bin: a branch would be mispredicted too often.
    let mut kept = 0;
    for &value in scores {
        scratch[kept] = value;
        kept += usize::from(bin(value) == chosen);
    }
    let (_, value, _) = scratch[..kept].select_nth_unstable_by(left - 1, |a, b| key(*b).cmp(&key(*a)));
    if value.is_nan() { f32::NEG_INFINITY } else { *value }
}

#[cfg(test)]
mod tests {
    use super::kth_largest;

    #[test]
    fn agrees_with_sorting() {
        let mut state = 1u32;
        for n in [1usize, 2, 15, 64, 1000] {
            let mut scores: Vec<f32> = (0..n)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 8) as f32 / 65536.0 - 128.0
                })
                .collect();
            if n > 10 {
                scores[3] = f32::INFINITY;
                scores[5] = f32::NEG_INFINITY;
                scores[7] = scores[8];
            }
            let mut sorted = scores.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let mut scratch = vec![0.0; n + 1];
            for k in 1..=n {
                assert_eq!(kth_largest(&scores, k, &mut scratch), sorted[k - 1]);
            }
        }
    }

    #[test]
    fn nan_is_smallest() {
        let scores = [f32::NAN, 1.0, f32::NAN, -2.0];
        let mut scratch = [0.0; 5];
        let got: Vec<f32> = (1..=4).map(|k| kth_largest(&scores, k, &mut scratch)).collect();
        assert_eq!(got, [1.0, -2.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
    }
}
