//! `sparrow profile`: where the time of a step goes.

use serde_json::json;
use sparrow::internals::backend::Timing;

use crate::bench::subject::Subject;
use crate::bench::workload::WorkloadArgs;
use crate::output::{self, Format, percent};

/// Show where the time of a prompt and of a token goes, by component.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    workload: WorkloadArgs,
    /// Form of the output
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    format: Format,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut reports = Vec::new();
    for job in args.workload.jobs()? {
        let dtype = job.dtype.as_ref().map_or(String::new(), |dtype| format!("{dtype}, "));
        let (name, prompt_tokens) = (format!("{dtype}{}", job.selector), job.prompt_tokens);
        let mut subject = Subject::load(job)?;
        subject.run()?;
        let profile = subject.profile()?;
        if args.format == Format::Table {
            print(&format!("{name}: prompt of {prompt_tokens} tokens"), &profile.prefill)?;
            print(&format!("{name}: one token"), &profile.decode)?;
        }
        reports
            .push(json!({ "selector": name, "prefill": object(&profile.prefill), "decode": object(&profile.decode) }));
    }
    if args.format == Format::Json { output::json(&reports) } else { Ok(()) }
}

fn object(timings: &[(String, Timing)]) -> serde_json::Map<String, serde_json::Value> {
    timings.iter().map(|(name, timing)| (name.clone(), json!(timing))).collect()
}

fn print(title: &str, timings: &[(String, Timing)]) -> anyhow::Result<()> {
    let total: f64 = timings.iter().map(|(_, t)| t.mean).sum();
    let us = |seconds: f64| format!("{:.1}", seconds * 1e6);
    let row = |(name, t): &(String, Timing)| {
        vec![name.clone(), us(t.mean), percent(t.mean / total), us(t.std), us(t.min), us(t.max)]
    };
    let sum = vec!["sum".to_owned(), us(total), percent(1.0), String::new(), String::new(), String::new()];
    outln!("{title}");
    output::table(&["component", "mean µs", "share", "std", "min", "max"], timings.iter().map(row).chain([sum]))?;
    outln!();
    Ok(())
}
