//! `sparrow doctor`.

use serde_json::json;
use sparrow_kernels::{Isa, available_memory, cpu_quota, peak, read_bandwidth, tiers};

use crate::machine;
use crate::model::CpuArgs;
use crate::output::{self, Format};

/// Show what this machine can do and what will be used.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    cpu: CpuArgs,
    /// Form of the output
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    format: Format,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let cpu = args.cpu.cpu();
    let compute = &cpu.compute;
    let bar = output::progress("measuring", 2, false);
    let read_gb_s = read_bandwidth(compute);
    bar.inc(1);
    let peak = peak(compute);
    bar.finish_and_clear();
    let tiers = tiers();
    if args.format == Format::Json {
        return output::json(&json!({
            "cpu": machine::cpu_name(),
            "isa": compute.isa().to_string(),
            "tiers": tiers.iter().map(|t| json!({
                "isa": t.isa.to_string(), "available": t.available, "reason": t.reason,
            })).collect::<Vec<_>>(),
            "threads": compute.threads(),
            "cpus": machine::cpus(),
            "cgroup_quota_cpus": cpu_quota(),
            "available_memory_bytes": available_memory(),
            "huge_pages": machine::huge_pages(),
            "read_gb_s": read_gb_s,
            "peak_tflops": { "f32": peak.f32, "bf16": peak.bf16, "int8": peak.int8 },
        }));
    }
    let quota = cpu_quota().map_or("none".into(), |q| format!("{q:.2} CPUs"));
    let lines = [
        ("CPU", machine::cpu_name()),
        (
            "threads",
            format!("{} of {} CPUs; control group limit: {quota}", compute.threads(), machine::cpus().unwrap_or(0)),
        ),
        ("memory", available_memory().map_or("unknown".into(), |b| format!("{} available", output::bytes(b)))),
        ("huge pages", machine::huge_pages().unwrap_or("unknown".into())),
        ("read bandwidth", format!("{read_gb_s:.1} GB/s")),
        ("f32 peak", format!("{:.2} TFLOP/s", peak.f32)),
        ("bf16 peak", format!("{:.2} TFLOP/s", peak.bf16)),
        ("int8 peak", format!("{:.2} TOP/s", peak.int8)),
    ];
    for (name, value) in lines {
        outln!("{name:>14}  {value}");
    }
    for tier in &tiers {
        outln!("{:>14}  {}: {}", tier.isa.to_string(), if tier.available { "yes" } else { "no" }, tier.reason);
    }
    outln!();
    outln!("{}", verdict(compute.isa(), compute.threads(), read_gb_s));
    Ok(())
}

fn verdict(isa: Isa, threads: usize, read_gb_s: f64) -> String {
    let kernels = match isa {
        Isa::Scalar => "portable kernels without vector instructions: expect low speed",
        Isa::Avx2 => "AVX2 kernels",
        Isa::Avx512 => "AVX-512 kernels",
        Isa::Avx512Bf16 => "AVX-512 kernels, for prompts with BF16",
        Isa::Amx => "AMX for prompts, AVX-512 for the rest",
    };
    format!(
        "Sparrow will use {kernels}, on {threads} threads. Decoding reads every weight it needs once per token: a model \
         of 1 GB can reach {read_gb_s:.0} tokens per second here, and one that skips half of its bytes twice that."
    )
}
