//! `sparrow bench --kernels`: every kernel, element type and tier at the shapes of Llama 3.2 3B, beside what the machine
//! can do at best, each answer checked against the scalar tier.

mod case;
mod data;
mod dense;
mod report;
mod vectors;

use std::time::Duration;

use anyhow::{bail, ensure};
use sparrow_kernels::{BandwidthProbe, Compute, DType, Isa, peak, tiers};

use self::case::{Case, Entrant, READ, Results};
use self::data::{HEAD_DIM, HIDDEN, Weights};
use self::report::{Report, Row};
use crate::machine;
use crate::output::{self, Format};

/// Time for the calls of one tier.
const BUDGET: Duration = Duration::from_millis(80);
/// Calls of one tier, at least (unless a single one exceeds the budget) and at most.
const CALLS: std::ops::RangeInclusive<usize> = 3..=25;
/// Which rows were asked for: kernels, element types and tiers.
struct Filter(Vec<String>);

impl Filter {
    /// Whether `value` was asked for, or nothing of its kind, which `all` lists.
    fn wants(&self, value: &str, all: &[&str]) -> bool {
        self.names(&[value]) || !self.names(all)
    }

    /// Whether any of these was asked for.
    fn names(&self, all: &[&str]) -> bool {
        self.0.iter().any(|word| all.iter().any(|name| word.eq_ignore_ascii_case(name)))
    }

    fn check(&self, known: &[&str]) -> anyhow::Result<()> {
        for word in &self.0 {
            ensure!(
                known.iter().any(|name| word.eq_ignore_ascii_case(name)),
                "--kernels {word}: expected kernels, element types or tiers among {}",
                known.join(", ")
            );
        }
        Ok(())
    }
}

const TYPES: [&str; DType::ALL.len() + 2] = {
    let mut names = ["i32"; DType::ALL.len() + 2];
    names[1] = "i64";
    let mut i = 0;
    while i < DType::ALL.len() {
        names[i + 2] = DType::ALL[i].name();
        i += 1;
    }
    names
};

pub fn run(words: Vec<String>, threads: Option<usize>, format: Format) -> anyhow::Result<()> {
    let filter = Filter(words);
    let isas = Isa::ALL.map(Isa::name);
    let kernels = [&dense::NAMES[..], &vectors::NAMES[..]].concat();
    filter.check(&[&kernels[..], &TYPES[..], &isas[..]].concat())?;

    let scalar = Compute::with_isa(Isa::Scalar, threads)?;
    let mut computes = Vec::new();
    for tier in tiers().iter().filter(|tier| filter.wants(tier.isa.name(), &isas)) {
        match tier.available {
            true => computes.push(Compute::with_isa(tier.isa, threads)?),
            false => note!("without {}: {}", tier.isa, tier.reason),
        }
    }
    ensure!(!computes.is_empty(), "none of the tiers asked for is available");
    let best = Compute::new(threads);
    let mut bench = Bench { probe: BandwidthProbe::new(&best), best, scalar, computes, rows: Vec::new() };

    let typed = |dtype: &str| filter.wants(dtype, &TYPES);
    let wants_kernel = |kernel: &str| filter.wants(kernel, &kernels);
    let progress = output::progress("vectors", DType::ALL.len() as u64 + 1, false);
    let mut cases = if filter.names(&TYPES) { Vec::new() } else { vectors::cases() };
    if wants_kernel("sparse_mlp_integer") {
        cases.extend(typed("i32").then(|| vectors::integers::<i32>("i32")));
        cases.extend(typed("i64").then(|| vectors::integers::<i64>("i64")));
    }
    cases.retain(|case| wants_kernel(case.kernel));
    bench.measure(&cases, &progress)?;
    drop(cases);
    progress.inc(1);
    for dtype in DType::ALL {
        if typed(dtype.name()) && dense::NAMES.iter().any(|name| *name != "attention" && wants_kernel(name)) {
            let weights = Weights::new(dtype, HIDDEN);
            let mut cases = dense::cases(&weights);
            cases.retain(|case| wants_kernel(case.kernel));
            bench.measure(&cases, &progress)?;
        }
        if typed(dtype.name()) && wants_kernel("attention") && dense::CACHES.contains(&dtype) {
            let cache = Weights::new(dtype, HEAD_DIM);
            bench.measure(&dense::attention_cases(&cache), &progress)?;
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    if bench.rows.is_empty() {
        bail!("--kernels {}: nothing fits all of that", filter.0.join(" "));
    }
    let report = Report::new(machine::cpu_name(), bench.best.threads(), bench.rows);
    match format {
        Format::Json => output::json(&report),
        Format::Table => report.print(),
    }
}

struct Bench {
    scalar: Compute,
    best: Compute,
    computes: Vec<Compute>,
    probe: BandwidthProbe,
    rows: Vec<Row>,
}

impl Bench {
    fn measure(&mut self, cases: &[Case], progress: &indicatif::ProgressBar) -> anyhow::Result<()> {
        for case in cases {
            progress.set_message(format!("{} {}", case.kernel, case.dtype));
            self.case(case)?;
        }
        Ok(())
    }

    /// Checks and times a case on every tier, the tiers and the floor taking turns.
    fn case(&mut self, case: &Case) -> anyhow::Result<()> {
        let mut reference = Results::default();
        let places = case.expected.as_ref().map(|f| f(&self.scalar));
        if places.is_none() {
            (case.call)(&self.scalar, 0, &mut reference);
        }
        let mut entrants = Vec::new();
        for compute in self.computes.iter().filter(|c| (case.tier)(c.isa())) {
            let mut results = Results::default();
            (case.call)(compute, 0, &mut results);
            check(case, compute.isa(), &results, &reference, places.as_deref())?;
            let peaks = if case.work.is_operations() { vec![peak(compute)] } else { Vec::new() };
            entrants.push(Entrant { compute, results, peaks, times: Vec::new() });
        }
        let (mut reads, mut call) = (Vec::new(), 0);
        for round in 1..=*CALLS.end() {
            let mut late = true;
            for entrant in &mut entrants {
                let spent: f64 = entrant.times.iter().sum();
                if spent > BUDGET.as_secs_f64() && round > *CALLS.start() || spent > 1.0 {
                    continue;
                }
                late = false;
                // Each call its own data: what the last tier has just read is in the caches.
                call += 1;
                let time = entrant.time(case, call);
                entrant.times.push(time);
            }
            if late {
                break;
            }
            reads.push(self.probe.measure(&self.best, READ));
        }
        for entrant in &mut entrants {
            if case.work.is_operations() {
                entrant.peaks.push(peak(entrant.compute));
            }
            self.rows.push(Row::new(case, entrant, &reads));
        }
        Ok(())
    }
}

/// How far floats may be from the scalar tier's, relative to the largest of them: sums in another order; with tiles also
/// operands rounded to bf16.
fn tolerance(case: &Case, isa: Isa) -> f32 {
    let rounds = isa >= Isa::Avx512Bf16 && case.work.is_operations();
    if rounds { 1e-2 } else { 5e-4 }
}

fn check(case: &Case, isa: Isa, got: &Results, want: &Results, places: Option<&[(usize, f32)]>) -> anyhow::Result<()> {
    let name = || format!("{} {} {} on {isa}", case.kernel, case.dtype, case.shape);
    let all: Vec<(usize, f32)>;
    let places = match places {
        Some(places) => places,
        None => {
            all = want.floats.iter().copied().enumerate().collect();
            ensure!(got.floats.len() == all.len(), "{}: {} results, not {}", name(), got.floats.len(), all.len());
            &all
        }
    };
    let size = places.iter().map(|(_, v)| v.abs()).fold(0.0, f32::max);
    for &(i, want) in places {
        let got = got.floats[i];
        if (got - want).abs() <= tolerance(case, isa) * size {
            continue;
        }
        bail!("{}: result {i} is {got}, the scalar tier's is {want}", name());
    }
    let same =
        got.words == want.words && got.ids == want.ids && got.bytes == want.bytes && got.integers == want.integers;
    ensure!(same, "{}: differs from the scalar tier", name());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::case::Work;
    use super::*;

    fn case() -> Case<'static> {
        Case {
            kernel: "linear",
            dtype: "f32".into(),
            shape: "[3]".into(),
            work: Work::Bytes(12),
            working_set: 12,
            call: Box::new(|_, _, _| ()),
            expected: None,
            tier: |_| true,
        }
    }

    fn floats(values: &[f32]) -> Results {
        Results { floats: values.to_vec(), ..Results::default() }
    }

    #[test]
    fn wrong_answers_are_errors_that_name_the_kernel() {
        let want = floats(&[1.0, -2.0, 0.0]);
        let check = |got: &Results, want: &Results| check(&case(), Isa::Avx2, got, want, None);
        assert!(check(&floats(&[1.0, -2.0005, 0.0005]), &want).is_ok());
        for wrong in [[1.0, -2.0, 0.1], [f32::NAN, -2.0, 0.0], [1.0, 2.0, 0.0]] {
            let error = check(&floats(&wrong), &want).unwrap_err().to_string();
            assert!(error.contains("linear f32 [3] on avx2"), "{error}");
        }
        assert!(check(&floats(&[1.0, -2.0]), &want).is_err());
        let bits = |word| Results { words: vec![word], ..Results::default() };
        assert!(check(&bits(5), &bits(5)).is_ok());
        assert!(check(&bits(4), &bits(5)).is_err());
    }

    #[test]
    fn names_of_one_kind_add_up_and_kinds_intersect() {
        let filter = Filter(vec!["linear".into(), "rope".into(), "AMX".into()]);
        assert!(filter.wants("linear", &dense::NAMES) && !filter.wants("attention", &dense::NAMES));
        assert!(filter.wants("amx", &Isa::ALL.map(Isa::name)) && !filter.wants("avx2", &Isa::ALL.map(Isa::name)));
        assert!(TYPES.iter().all(|dtype| filter.wants(dtype, &TYPES)));
        assert!(filter.check(&["linear", "rope"]).is_err());
    }
}
