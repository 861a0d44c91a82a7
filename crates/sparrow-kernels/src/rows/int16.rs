//! Activations in 16-bit integers.

use crate::dtype::coded::SPAN;
use crate::parallel::AlignedBuffer;

/// The largest magnitude of a code: 127 · 256, so that it is two signed bytes of which the high one is at most 127.
pub(crate) const LARGEST: f32 = 32512.0;

/// How the codes of a row are written a second time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arranged {
    /// Of every 32 of them the even ones, then the odd ones.
    Apart,
    /// Of every 64 of them the high bytes, then the low ones, both signed: a code is 256 · high + low. And all of them a third
    /// time, as `halves`.
    Bytes,
}

/// Where the parts of a row of `k` codes are: codes (`i16`), padded with zeros to whole spans; the same as the tier's kernels
/// like them, see [`Arranged`]; the same in [halves](Int16Rows::halves); their sums (`f32`, exact) by 32 and by 16; the scale (`f32`).
#[derive(Clone, Copy)]
pub(crate) struct Int16Layout {
    padded: usize,
}

impl Int16Layout {
    pub(crate) const fn of(k: usize) -> Self {
        Self { padded: k.next_multiple_of(SPAN) }
    }

    const fn arranged_at(self) -> usize {
        self.padded * size_of::<i16>()
    }

    const fn halves_at(self) -> usize {
        2 * self.arranged_at()
    }

    const fn sums_at(self) -> usize {
        3 * self.arranged_at()
    }

    const fn sums16_at(self) -> usize {
        self.sums_at() + self.padded / 32 * size_of::<f32>()
    }

    const fn scale_at(self) -> usize {
        self.sums16_at() + self.padded / 16 * size_of::<f32>()
    }

    /// Bytes of a row: whole lines of the cache.
    pub(crate) const fn row_bytes(self) -> usize {
        (self.scale_at() + size_of::<f32>()).next_multiple_of(64)
    }
}

/// Activations `[m, k]` quantised to 16 bits, one scale per row.
pub(crate) struct Int16Activations<'a> {
    bytes: AlignedBuffer<'a>,
    layout: Int16Layout,
}

impl<'a> Int16Activations<'a> {
    /// Rows that are filled already, by [`quantize_apart`] or [`quantize_bytes`].
    pub(crate) fn of(bytes: AlignedBuffer<'a>, layout: Int16Layout) -> Self {
        Self { bytes, layout }
    }

    /// The rows for a kernel.
    pub(crate) fn rows(&self) -> Int16Rows {
        Int16Rows { base: self.bytes.as_ptr(), layout: self.layout }
    }
}

/// Rows of [`Int16Activations`].
#[derive(Clone, Copy)]
pub(crate) struct Int16Rows {
    base: *const u8,
    layout: Int16Layout,
}

impl Int16Rows {
    /// The rows from row `t`, which must exist, on.
    pub(crate) fn from(self, t: usize) -> Int16Rows {
        Int16Rows { base: self.row(t), ..self }
    }

    #[inline(always)]
    fn row(&self, t: usize) -> *const u8 {
        self.base.wrapping_add(t * self.layout.row_bytes())
    }

    /// The codes of row `t`, at the start of a line of the cache. The address is valid if the row exists, as for the
    /// methods below.
    #[inline(always)]
    pub(crate) fn codes(&self, t: usize) -> *const i16 {
        self.row(t).cast()
    }

    /// The codes of row `t` as [`Arranged`] by the tier, at the start of a line of the cache.
    #[inline(always)]
    pub(crate) fn arranged(&self, t: usize) -> *const u8 {
        self.row(t).wrapping_add(self.layout.arranged_at())
    }

    /// Of every 128 codes of row `t` the first 16 of every 32: their high bytes, then the low ones; then the last 16 likewise.
    /// Only where they are [`Arranged::Bytes`].
    #[inline(always)]
    pub(crate) fn halves(&self, t: usize) -> *const u8 {
        self.row(t).wrapping_add(self.layout.halves_at())
    }

    /// The sums of every 32 codes of row `t`.
    #[inline(always)]
    pub(crate) fn sums(&self, t: usize) -> *const f32 {
        self.row(t).wrapping_add(self.layout.sums_at()).cast()
    }

    /// The sums of every 16 codes of row `t`.
    #[inline(always)]
    pub(crate) fn sums16(&self, t: usize) -> *const f32 {
        self.row(t).wrapping_add(self.layout.sums16_at()).cast()
    }

    /// The scale of row `t`.
    ///
    /// # Safety
    /// The row must exist.
    #[inline(always)]
    pub(crate) unsafe fn scale(&self, t: usize) -> f32 {
        // SAFETY: the caller guarantees the row, which holds it at a multiple of 4.
        unsafe { self.row(t).add(self.layout.scale_at()).cast::<f32>().read() }
    }
}

/// Fills a row of `layout`: codeᵢ ← round(xᵢ / s) to even, s = max |x| / [`LARGEST`].
///
/// With NaN or infinity among the values s is NaN and the codes are 0; values so small that the largest code ÷ max
/// overflows count as 0. The body of every tier's kernel: it vectorises where it is inlined into one with features.
///
/// # Panics
/// If the row does not start at a multiple of 4, or has another length.
#[inline(always)]
fn quantize_row(x: &[f32], row: &mut [u8], arranged: Arranged) {
    let layout = Int16Layout::of(x.len());
    assert_eq!((row.len(), row.as_ptr().addr() % 4), (layout.row_bytes(), 0), "quantize_row");
    const LANES: usize = 32;
    let mut largest = [0.0f32; LANES];
    let mut finite = [true; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let size = chunk[lane].abs();
            finite[lane] &= size < f32::INFINITY;
            largest[lane] = if size > largest[lane] { size } else { largest[lane] };
        }
    }
    let max = rest.iter().map(|v| v.abs()).chain(largest).fold(0.0, |a, b| if b > a { b } else { a });
    let inverse = LARGEST / max;
    let finite = !finite.contains(&false) && rest.iter().all(|v| v.is_finite());
    row.fill(0);
    let scale = match (finite, inverse.is_finite()) {
        (false, _) => f32::NAN,
        (true, false) => 0.0,
        (true, true) => {
            // SAFETY: the row is aligned and long enough for the arrays, which do not overlap.
            let (codes, again, halves, sums, sums16) = unsafe {
                let base = row.as_mut_ptr();
                (
                    std::slice::from_raw_parts_mut(base.cast::<i16>(), layout.padded),
                    std::slice::from_raw_parts_mut(base.add(layout.arranged_at()), 2 * layout.padded),
                    std::slice::from_raw_parts_mut(base.add(layout.halves_at()), 2 * layout.padded),
                    std::slice::from_raw_parts_mut(base.add(layout.sums_at()).cast::<f32>(), layout.padded / 32),
                    std::slice::from_raw_parts_mut(base.add(layout.sums16_at()).cast::<f32>(), layout.padded / 16),
                )
            };
            // Adding 1.5 · 2²³ rounds to even and leaves the integer in the low bits.
            const ROUND: f32 = 12_582_912.0;
            for (to, &v) in codes.iter_mut().zip(x) {
                *to = ((v * inverse + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32) as i16;
            }
            match arranged {
                Arranged::Apart => {
                    // SAFETY: the numbers are at the start of a line of the cache, and take two bytes each.
                    let to = unsafe { std::slice::from_raw_parts_mut(again.as_mut_ptr().cast(), layout.padded) };
                    for (to, pairs) in to.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<32>().0) {
                        // As numbers of 32 bits, the even one in the low half, which are narrowed as vectors.
                        // SAFETY: 32 numbers of 16 bits are 16 of 32 bits, and a number may be read at any address.
                        let pairs = unsafe { pairs.as_ptr().cast::<[i32; 16]>().read_unaligned() };
                        for i in 0..16 {
                            to[i] = pairs[i] as i16;
                        }
                        for i in 0..16 {
                            to[16 + i] = (pairs[i] >> 16) as i16;
                        }
                    }
                }
                Arranged::Bytes => {
                    let high = |code: i16| (code.wrapping_add(128) >> 8) as u8;
                    for (to, codes) in again.as_chunks_mut::<128>().0.iter_mut().zip(codes.as_chunks::<64>().0) {
                        for i in 0..64 {
                            to[i] = high(codes[i]);
                        }
                        for i in 0..64 {
                            to[64 + i] = codes[i] as u8;
                        }
                    }
                    for (to, codes) in halves.as_chunks_mut::<256>().0.iter_mut().zip(codes.as_chunks::<128>().0) {
                        for (group, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
                            for i in 0..16 {
                                to[16 * group + i] = high(codes[i]);
                                to[64 + 16 * group + i] = codes[i] as u8;
                                to[128 + 16 * group + i] = high(codes[16 + i]);
                                to[192 + 16 * group + i] = codes[16 + i] as u8;
                            }
                        }
                    }
                }
            }
            let (codes, _) = codes.as_chunks::<16>();
            for (to, codes) in sums16.iter_mut().zip(codes) {
                *to = codes.iter().map(|&code| i32::from(code)).sum::<i32>() as f32;
            }
            for (to, [a, b]) in sums.iter_mut().zip(sums16.as_chunks::<2>().0) {
                *to = a + b;
            }
            max / LARGEST
        }
    };
    row[layout.scale_at()..][..4].copy_from_slice(&scale.to_ne_bytes());
}

/// [`quantize_row`] with the codes [`Arranged::Apart`].
#[inline(always)]
pub(crate) fn quantize_apart(x: &[f32], row: &mut [u8]) {
    quantize_row(x, row, Arranged::Apart);
}

/// [`quantize_row`] with the codes as [`Arranged::Bytes`].
// Other CPUs multiply no bytes.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
#[inline(always)]
pub(crate) fn quantize_bytes(x: &[f32], row: &mut [u8]) {
    quantize_row(x, row, Arranged::Bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::Scratch;

    #[test]
    fn codes_sums_and_scale() {
        let scratch = Scratch::new();
        let layout = Int16Layout::of(3);
        let mut bytes = scratch.take_aligned(layout.row_bytes());
        quantize_apart(&[1.0, -0.5, 0.25], &mut bytes);
        let rows = Int16Activations::of(bytes, layout);
        let row = rows.rows();
        // SAFETY: the row exists.
        unsafe {
            assert_eq!([0, 1, 2, 3, 255].map(|i| *row.codes(0).add(i)), [32512, -16256, 8128, 0, 0]);
            let apart = row.arranged(0).cast::<i16>();
            assert_eq!([0, 1, 16, 17, 255].map(|i| *apart.add(i)), [32512, 8128, -16256, 0, 0]);
            assert_eq!((*row.sums(0), *row.sums16(0), *row.sums(0).add(7)), (24384.0, 24384.0, 0.0));
            assert_eq!(row.scale(0), 1.0 / 32512.0);
        }
    }

    #[test]
    fn bytes_add_up() {
        let scratch = Scratch::new();
        let layout = Int16Layout::of(300);
        let mut bytes = scratch.take_aligned(layout.row_bytes());
        let x: Vec<f32> = (0..300).map(|i| ((i * 7919) % 601) as f32 - 300.0).collect();
        quantize_bytes(&x, &mut bytes);
        let rows = Int16Activations::of(bytes, layout);
        let row = rows.rows();
        for i in 0..512 {
            // SAFETY: the row exists, and is padded to 512 codes.
            let (code, [high, low]) = unsafe {
                let at = row.arranged(0).add(i / 64 * 128 + i % 64).cast::<i8>();
                (*row.codes(0).add(i), [*at, *at.add(64)])
            };
            assert_eq!(i32::from(high) * 256 + i32::from(low), i32::from(code), "code {i}");
            // SAFETY: as above.
            let halves = unsafe {
                let at = row.halves(0).add(i / 128 * 256 + i % 32 / 16 * 128 + i % 128 / 32 * 16 + i % 16).cast::<i8>();
                [*at, *at.add(64)]
            };
            assert_eq!(halves, [high, low], "code {i}");
        }
    }

    #[test]
    fn special_rows() {
        let scratch = Scratch::new();
        let layout = Int16Layout::of(2);
        for (values, scale) in
            [([0.0, 0.0], 0.0), ([1e-44, 0.0], 0.0), ([f32::NAN, 1.0], f32::NAN), ([1.0, f32::INFINITY], f32::NAN)]
        {
            let mut bytes = scratch.take_aligned(layout.row_bytes());
            quantize_apart(&values, &mut bytes);
            let rows = Int16Activations::of(bytes, layout);
            // SAFETY: the row exists.
            let found = unsafe { (*rows.rows().codes(0), rows.rows().scale(0)) };
            assert!(found.0 == 0 && (found.1 == scale || found.1.is_nan() && scale.is_nan()), "{values:?}");
        }
    }
}
