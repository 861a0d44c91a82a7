//! What `sparrow bench --kernels` prints.

use serde::Serialize;
use sparrow_kernels::{DType, Isa};

use super::case::{Case, Entrant, LAST_LEVEL_CACHE, READ, Work};
use crate::output;

#[derive(Serialize)]
pub struct Report {
    cpu: String,
    threads: usize,
    kernels: Vec<Row>,
}

/// One kernel, type, tier and shape.
#[derive(Serialize)]
pub struct Row {
    kernel: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    dtype: String,
    isa: String,
    shape: String,
    /// Median.
    time_us: f64,
    calls: usize,
    /// `GB/s` or `GFLOP/s`.
    unit: &'static str,
    rate: f64,
    /// `read` (of memory) or the type whose peak it is.
    floor: &'static str,
    floor_rate: f64,
    fraction: f64,
    in_cache: bool,
}

impl Row {
    pub fn new(case: &Case, entrant: &Entrant, reads: &[f64]) -> Row {
        let time = median(&entrant.times);
        let peak = |dtype: DType| {
            let peaks = &entrant.peaks;
            let mean = |f: &dyn Fn(usize) -> f64| (0..peaks.len()).map(f).sum::<f64>() / peaks.len() as f64 * 1e3;
            // Tiles take codes rounded to bf16.
            let in_bf16 = dtype == DType::BF16 || dtype != DType::I8 && entrant.compute.isa() == Isa::Amx;
            match dtype {
                DType::F32 | DType::F16 => ("f32", mean(&|i| peaks[i].f32)),
                _ if in_bf16 => ("bf16", mean(&|i| peaks[i].bf16)),
                _ => ("int8", mean(&|i| peaks[i].int8)),
            }
        };
        let (unit, amount, (floor, floor_rate)) = match case.work {
            Work::Bytes(bytes) => ("GB/s", bytes as f64, ("read", median(reads))),
            Work::Operations(count, dtype) => ("GFLOP/s", count, peak(dtype)),
        };
        let rate = amount / time / 1e9;
        Row {
            kernel: case.kernel,
            dtype: case.dtype.clone(),
            isa: entrant.compute.isa().to_string(),
            shape: case.shape.clone(),
            time_us: time * 1e6,
            calls: entrant.times.len(),
            unit,
            rate,
            floor,
            floor_rate,
            fraction: rate / floor_rate,
            in_cache: case.in_cache(),
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Report {
    pub fn new(cpu: String, threads: usize, mut kernels: Vec<Row>) -> Self {
        let order = |isa: &str| Isa::ALL.iter().position(|known| known.name() == isa);
        kernels.sort_by_key(|row| (row.kernel, order(&row.isa)));
        Report { cpu, threads, kernels }
    }

    pub fn print(&self) -> anyhow::Result<()> {
        outln!("{}, {} threads; every answer agrees with the scalar tier", self.cpu, self.threads);
        let rows = self.kernels.iter().map(|row| {
            vec![
                row.kernel.to_owned(),
                row.dtype.clone(),
                row.isa.clone(),
                row.shape.clone(),
                format!("{:.*}", if row.time_us < 100.0 { 2 } else { 0 }, row.time_us),
                format!("{:.1} {}", row.rate, row.unit),
                format!("{:.1} {}", row.floor_rate, row.floor),
                format!("{:.2}", row.fraction),
                if row.in_cache { "yes" } else { "" }.to_owned(),
            ]
        });
        output::table(&["kernel", "type", "tier", "shape", "us", "rate", "floor", "of floor", "in cache"], rows)?;
        outln!();
        outln!(
            "floor: what the machine did in between, reading {} from memory or multiplying in registers; in cache: the data \
             fits the last-level cache ({}), so the rate may exceed the memory's",
            output::bytes(READ as u64),
            output::bytes(LAST_LEVEL_CACHE as u64)
        );
        Ok(())
    }
}
