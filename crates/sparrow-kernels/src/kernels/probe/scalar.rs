//! Probes in portable Rust.

use super::STREAMS;

/// Reads every byte of [`STREAMS`] times whole lines; the result keeps the loads alive.
///
/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn read_scalar(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; STREAMS];
    let len = bytes.len() / STREAMS;
    for i in (0..len / 64 * 64).step_by(64) {
        for (stream, sum) in sums.iter_mut().enumerate() {
            for b in bytes[stream * len + i..][..64].as_chunks::<8>().0 {
                *sum ^= u64::from_le_bytes(*b);
            }
        }
    }
    sums.iter().fold(0, |all, &sum| all ^ sum)
}

/// `steps` steps of independent multiply-adds; returns the operations done.
///
/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn peak_f32_scalar(steps: usize) -> f64 {
    const LANES: usize = 32;
    let mut sums = [1.0f32; LANES];
    let (a, b) = (std::hint::black_box(0.999f32), std::hint::black_box(1e-3f32));
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = *sum * a + b;
        }
    }
    std::hint::black_box(sums);
    (2 * LANES * steps) as f64
}

/// `steps` steps of independent products of int8 with 16 bits, added up; returns the operations done.
///
/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn peak_int8_scalar(steps: usize) -> f64 {
    const LANES: usize = 32;
    let mut sums = [1i32; LANES];
    let (w, x) = (std::hint::black_box([3i8; LANES]), std::hint::black_box([5i16; LANES]));
    for _ in 0..steps {
        for (sum, (&w, &x)) in sums.iter_mut().zip(w.iter().zip(&x)) {
            *sum = sum.wrapping_add(i32::from(w) * i32::from(x));
        }
        std::hint::black_box(&mut sums);
    }
    (2 * LANES * steps) as f64
}
