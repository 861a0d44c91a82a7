//! Decoding with a long context from a cache pruned by magnitude against a dense one: one model (the shape of Llama 3.2 3B,
//! random weights, so speed only), two sessions that take turns. The prompt is prefilled once and copied to the other sequences.
//!
//! `cargo run --release -p sparrow --example kv_decode [-- CONTEXT [BATCH [SHAPE]]]`, by default 16384 4 llama-3.2-3b: 19 GB of memory

use std::sync::Arc;
use std::time::Instant;

use sparrow::internals::backend::Component;
use sparrow::{Cpu, DType, KvOptions, Selector, Session, SessionOptions, WeightsFormat};
use sparrow_tools::shapes;

/// Steps of a turn, and turns.
const STEPS: usize = 4;
const TURNS: usize = 5;
const SPARSITY: &str = "k=0.3,v=0.5";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let context: usize = args.next().map_or(Ok(16384), |arg| arg.parse())?;
    let batch: usize = args.next().map_or(Ok(4), |arg| arg.parse())?;
    let shape = args.next().unwrap_or_else(|| "llama-3.2-3b".into());
    let cpu = Arc::new(Cpu::new(None));
    let spec = shapes::spec(&shape)?;
    let model = shapes::random_model(spec, DType::BF16, false, 0.0, &WeightsFormat::default(), &cpu)?;
    let model = Arc::new(model);
    let tokens: Vec<u32> = (0..context as u32).map(|i| i.wrapping_mul(7919) % model.spec.vocab_size as u32).collect();
    let mut sessions = Vec::new();
    for sparsity in [None, Some(SPARSITY.parse()?)] {
        let kv = KvOptions { sparsity, ..KvOptions::default() };
        let options = SessionOptions { sequences: batch, capacity: context + STEPS, kv };
        let mut session = Session::new(model.clone(), cpu.clone(), Selector::dense(), options)?;
        let start = Instant::now();
        session.prefill(0, &tokens)?;
        eprintln!("{context} tokens prefilled in {:.0} s", start.elapsed().as_secs_f64());
        (1..batch).try_for_each(|sequence| session.copy_prefix(0, sequence, context))?;
        sessions.push(session);
    }
    let step: Vec<(usize, u32)> = (0..batch).map(|sequence| (sequence, 1)).collect();
    // Seconds per step: of everything, and of attention over the caches.
    let mut times = [[const { Vec::new() }; 2], [const { Vec::new() }; 2]];
    for turn in 0..=TURNS {
        for (session, times) in sessions.iter_mut().zip(&mut times) {
            session.start_profile();
            let start = Instant::now();
            for _ in 0..STEPS {
                session.decode(&step)?;
            }
            let total = start.elapsed().as_secs_f64() / STEPS as f64;
            let attention = session.profile().into_iter().find(|(component, _)| *component == Component::Attention);
            (0..batch).try_for_each(|sequence| session.truncate(sequence, context))?;
            // The first turn grows working memory.
            if turn > 0 {
                times[0].push(total);
                times[1].push(attention.map_or(0.0, |(_, timing)| timing.mean));
            }
        }
    }
    println!(
        "{shape}, {context} tokens of context, batch {batch}, bf16, {} threads, {}",
        cpu.compute.threads(),
        cpu.compute.isa()
    );
    println!("{:<12} {:>12} {:>14} {:>12}", "cache", "step ms", "attention ms", "cache GB");
    let mut medians = Vec::new();
    for ((name, session), times) in ["dense", SPARSITY].into_iter().zip(&sessions).zip(&mut times) {
        let [step, attention] = times.each_mut().map(|times| median(times) * 1e3);
        let bytes = session.kv_bytes() as f64;
        println!("{name:<12} {step:>12.1} {attention:>14.1} {:>12.2}", bytes / 1e9);
        medians.push([step, attention, bytes]);
    }
    let [dense, sparse] = [medians[0], medians[1]];
    println!(
        "sparse ÷ dense: attention {:.2}, memory {:.2}; decode {:.2} × as fast",
        sparse[1] / dense[1],
        sparse[2] / dense[2],
        dense[0] / sparse[0]
    );
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
