//! What the machine can do at best: memory bandwidth and arithmetic peaks, to judge kernels against.

use crate::compute::Compute;
use crate::parallel::SharedMut;
use std::time::Instant;

/// Bytes of the bandwidth buffer: several times any private cache and most shares of the last level.
const BUFFER: usize = 1 << 30;
/// Bytes of one task.
const PIECE: usize = 1 << 21;
const PASSES: usize = 5;

/// The rate, in GB/s (10⁹ bytes), at which all threads together read memory: the best of several passes over a buffer
/// of 1 GiB with the widest loads of the tier.
///
/// Takes that much memory and about a second.
pub fn read_bandwidth(compute: &Compute) -> f64 {
    let mut probe = BandwidthProbe::new(compute);
    (0..PASSES).map(|_| probe.measure(compute, BUFFER)).fold(0.0, f64::max)
}

/// A buffer of 1 GiB whose parts can be read one after another, to see what the memory can do between other
/// measurements.
pub struct BandwidthProbe {
    buffer: Vec<u8>,
    next: usize,
}

impl BandwidthProbe {
    /// Fills the buffer.
    pub fn new(compute: &Compute) -> Self {
        let mut buffer = vec![0u8; BUFFER];
        let shared = SharedMut::new(&mut buffer);
        // Written first, and on all threads: untouched pages would all be the same zero page.
        compute.workers.pool.run(BUFFER / PIECE, &|task| {
            // SAFETY: tasks have disjoint pieces.
            unsafe { shared.part(task * PIECE..(task + 1) * PIECE) }.fill(task as u8 | 1);
        });
        Self { buffer, next: 0 }
    }

    /// The rate, in GB/s, of reading the next `bytes` of the buffer, at least 2 MiB and at most all, on all threads
    /// with the widest loads of the tier.
    pub fn measure(&mut self, compute: &Compute, bytes: usize) -> f64 {
        let pieces = (bytes / PIECE).clamp(1, BUFFER / PIECE);
        let start = Instant::now();
        compute.workers.pool.run(pieces, &|task| {
            let piece = &self.buffer[(self.next + task) * PIECE % BUFFER..][..PIECE];
            // SAFETY: the table holds only kernels that this CPU can run.
            std::hint::black_box(unsafe { (compute.kernels.read)(piece) });
        });
        self.next += pieces;
        (pieces * PIECE) as f64 / start.elapsed().as_secs_f64() / 1e9
    }
}

/// Arithmetic peaks of all threads together, in 10¹² operations per second; a multiply-add counts two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Fused multiply-adds of `f32` with the tier's vectors, in TFLOP/s.
    pub f32: f64,
    /// Products of bf16 weights accumulated in `f32`, in TFLOP/s, by what the tier has for them: AMX, or multiply-adds
    /// of `f32`.
    pub bf16: f64,
    /// Products of int8 weights with 16-bit activations accumulated in int32, in TOP/s, by what the tier has for them.
    pub int8: f64,
}

/// Measures the arithmetic peaks with loops that touch nothing but registers. Takes a fraction of a second.
pub fn peak(compute: &Compute) -> Peak {
    let kernels = compute.kernels;
    let [f32, bf16, int8] = [kernels.peak_f32, kernels.peak_bf16, kernels.peak_int8].map(|kernel| {
        // SAFETY: the table holds only kernels that this CPU can run.
        measure(compute, &|steps| unsafe { kernel(steps) })
    });
    Peak { f32, bf16, int8 }
}

/// 10¹² operations per second of `f(steps)`, which returns the operations it did, on all threads at once.
fn measure(compute: &Compute, f: &(dyn Fn(usize) -> f64 + Sync)) -> f64 {
    let mut steps = 1000;
    loop {
        let start = Instant::now();
        f(steps);
        if start.elapsed().as_secs_f64() > 2e-3 {
            break;
        }
        steps *= 2;
    }
    // Several short tasks per thread, so that one thread held up elsewhere does not hold up the measurement.
    let tasks = 8 * compute.threads();
    let operations = f(steps) * tasks as f64;
    let best = (0..PASSES)
        .map(|_| {
            let start = Instant::now();
            compute.workers.pool.run(tasks, &|_| {
                f(steps);
            });
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    operations / best / 1e12
}
