//! Probes in portable Rust.

/// Reads every byte; the result keeps the loads alive.
///
/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn read_scalar(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 8];
    for chunk in bytes.as_chunks::<64>().0 {
        for (lane, b) in chunk.as_chunks::<8>().0.iter().enumerate() {
            sums[lane] ^= u64::from_le_bytes(*b);
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
