//! What is measured, and what of it: cases, and the tiers that take part in one.

use std::time::{Duration, Instant};

use sparrow_kernels::{Compute, DType, Isa, Peak};

/// Bytes that the last-level cache may hold: what is read again before as many others counts as in cache. The largest
/// caches shared by many cores are of this size, however few of the cores are ours.
pub const LAST_LEVEL_CACHE: usize = 480 << 20;
/// Calls are repeated until they take as long together.
const SHORT: Duration = Duration::from_micros(200);
/// Bytes read between the calls, to see what the memory can do at that time.
pub const READ: usize = 64 << 20;

/// What bounds a kernel.
#[derive(Clone, Copy)]
pub enum Work {
    /// Bytes it must read and write.
    Bytes(usize),
    /// Operations (a multiply-add counts two) that a tier with tiles can do in this type, if it multiplies it at all.
    Operations(f64, DType),
}

impl Work {
    pub fn is_operations(self) -> bool {
        !matches!(self, Work::Bytes(_))
    }
}

/// Results of a kernel, and room for them.
#[derive(Default)]
pub struct Results {
    pub floats: Vec<f32>,
    pub words: Vec<u64>,
    pub ids: Vec<u32>,
    pub bytes: Vec<u8>,
    pub integers: Vec<i64>,
}

pub type Call<'a> = Box<dyn Fn(&Compute, usize, &mut Results) + 'a>;
/// Some values of the first call's floats with their places, by the scalar tier.
pub type Expected<'a> = Box<dyn Fn(&Compute) -> Vec<(usize, f32)> + 'a>;

/// One kernel at one shape.
pub struct Case<'a> {
    pub kernel: &'static str,
    pub dtype: String,
    pub shape: String,
    pub work: Work,
    /// Bytes between two reads of the same byte.
    pub working_set: usize,
    /// Call number i.
    pub call: Call<'a>,
    /// `None`: all results of the scalar tier's first call.
    pub expected: Option<Expected<'a>>,
    /// The tiers that run it.
    pub tier: fn(Isa) -> bool,
}

impl Case<'_> {
    /// Whether a last-level cache can hold all that the calls read.
    pub fn in_cache(&self) -> bool {
        self.working_set <= LAST_LEVEL_CACHE
    }
}

/// One tier in a case.
pub struct Entrant<'a> {
    pub compute: &'a Compute,
    pub results: Results,
    pub peaks: Vec<Peak>,
    pub times: Vec<f64>,
}

impl Entrant<'_> {
    /// Seconds of one call. Data that fits the caches is brought there first, and short calls are repeated, because the read
    /// of memory in between has replaced all that was there.
    pub fn time(&mut self, case: &Case, call: usize) -> f64 {
        let mut calls = |count: usize| {
            let start = Instant::now();
            (0..count).for_each(|_| (case.call)(self.compute, call, &mut self.results));
            start.elapsed().as_secs_f64() / count as f64
        };
        if !case.in_cache() {
            return calls(1);
        }
        let first = calls(1);
        calls((SHORT.as_secs_f64() / first).clamp(1.0, 100.0) as usize)
    }
}
