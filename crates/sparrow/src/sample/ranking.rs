//! The most likely tokens first, without sorting a whole vocabulary.

/// How many tokens are sorted at first, if so many are not excluded: a nucleus is rarely larger.
const FIRST: usize = 1024;

/// Tokens by decreasing logit, ties by increasing id, found only as far as they are looked at. NaN has no place in it.
#[derive(Debug, Default)]
pub(super) struct Ranking {
    /// The first so many, in order. See [`key`].
    keys: Vec<u64>,
    /// Tokens beyond this rank are not looked for.
    limit: usize,
}

impl Ranking {
    /// A ranking that never allocates for up to `vocab` logits.
    pub fn with_capacity(vocab: usize) -> Ranking {
        Ranking { keys: Vec::with_capacity(vocab), limit: 0 }
    }

    /// Forgets what was found; from now on there are `limit` ranks.
    pub fn restart(&mut self, limit: usize) {
        self.keys.clear();
        self.limit = limit;
    }

    /// The logit and the id at `rank`; `logits` must be the same since [`restart`](Self::restart).
    #[inline]
    pub fn get(&mut self, logits: &[f32], rank: usize) -> Option<(f32, u32)> {
        let known = self.keys.len();
        if rank >= known && known < self.limit {
            self.extend(logits, FIRST.max(7 * known).min(self.limit - known));
        }
        self.keys.get(rank).map(|&key| (logit(key), key as u32))
    }

    /// Finds the next `more` in one pass that keeps at least twice as many and drops the worse half when they are too many.
    fn extend(&mut self, logits: &[f32], more: usize) {
        let start = self.keys.len();
        let room = start + more + more.max(FIRST);
        // Keys that are wanted are above the last that is known and below the worst of the best so far.
        let above = self.keys.last().copied();
        let mut below = u64::MAX;
        // The same for logits, with equality: quick to check, and false for NaN.
        let highest = above.map_or(f32::INFINITY, logit);
        let mut lowest = f32::NEG_INFINITY;
        for (id, &l) in logits.iter().enumerate() {
            if l >= lowest && l <= highest {
                let key = key(l, id as u32);
                if key < below && above.is_none_or(|above| key > above) {
                    self.keys.push(key);
                    if self.keys.len() == room {
                        below = *self.keys[start..].select_nth_unstable(more - 1).1;
                        lowest = logit(below);
                        self.keys.truncate(start + more);
                    }
                }
            }
        }
        if self.keys.len() > start + more {
            self.keys[start..].select_nth_unstable(more - 1);
            self.keys.truncate(start + more);
        }
        self.keys[start..].sort_unstable();
    }
}

/// A number that is smaller the larger the logit is, in the order of [`f32::total_cmp`], and the smaller the id.
#[inline]
fn key(logit: f32, id: u32) -> u64 {
    let bits = logit.to_bits();
    let falling = if bits >> 31 == 1 { bits } else { !bits & !(1 << 31) };
    u64::from(falling) << 32 | u64::from(id)
}

/// The logit of a [`key`].
#[inline]
fn logit(key: u64) -> f32 {
    let falling = (key >> 32) as u32;
    f32::from_bits(if falling >> 31 == 1 { falling } else { !falling & !(1 << 31) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(logits: &[f32], limit: usize) -> Vec<u32> {
        let mut ranking = Ranking::with_capacity(logits.len());
        let capacity = ranking.keys.capacity();
        ranking.restart(limit);
        let ids = (0..).map_while(|rank| ranking.get(logits, rank)).map(|(_, id)| id).collect();
        assert_eq!(ranking.keys.capacity(), capacity, "allocated");
        ids
    }

    #[test]
    fn keys_are_in_the_order_of_total_cmp() {
        let logits = [f32::INFINITY, 3.0, 1e-40, 0.0, -0.0, -1e-40, -2.5, f32::MIN, f32::NEG_INFINITY];
        assert!(logits.windows(2).all(|pair| key(pair[0], 9) < key(pair[1], 0)));
        assert!(logits.iter().all(|&l| logit(key(l, 7)).to_bits() == l.to_bits() && key(l, 7) < key(l, 8)));
    }

    #[test]
    fn ranks_are_those_of_a_full_sort() {
        let random = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 12) as f32;
        let rows: [Vec<f32>; 5] = [
            (0..20_000).map(random).collect(),
            (0..20_000).map(|i| i as f32).collect(),
            (0..20_000).map(|i| -(i as f32)).collect(),
            // Ties everywhere.
            (0..20_000).map(|i| random(i) % 7.0).collect(),
            (0..20_000).map(|i| if i % 3 == 0 { f32::NAN } else { random(i) - 5e5 }).collect(),
        ];
        for logits in rows {
            let mut sorted: Vec<u32> = (0..20_000).filter(|&id| !logits[id as usize].is_nan()).collect();
            sorted.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
            for limit in [0, 1, 40, FIRST - 1, FIRST, FIRST + 1, 2 * FIRST, 8 * FIRST + 1, 20_000, usize::MAX] {
                assert_eq!(all(&logits, limit), sorted[..limit.min(sorted.len())], "limit {limit}");
            }
        }
    }
}
