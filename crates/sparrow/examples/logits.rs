//! Logits after a prompt of token ids, as raw little-endian f32 on standard output: for comparing engines.
//!
//! `cargo run --release -p sparrow --example logits MODEL DTYPE ID...`, where DTYPE may be `stored`.

use std::io::Write;

use sparrow::{DType, KvOptions, Load, SelectorSpec, SessionOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: logits MODEL DTYPE ID...";
    let (model, dtype) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?);
    let dtype = if dtype == "stored" { None } else { Some(dtype.parse::<DType>()?) };
    let ids = args.map(|id| id.parse()).collect::<Result<Vec<u32>, _>>()?;

    let loaded = Load::new(model).dtype(dtype).selector(SelectorSpec::dense()).format("dense".parse()?);
    let loaded = loaded.open(|_, _, _| ())?;
    let options = SessionOptions { sequences: 1, capacity: ids.len(), kv: KvOptions::default() };
    let mut session = loaded.session(options)?;
    let bytes: Vec<u8> = session.prefill(0, &ids)?.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    std::io::stdout().write_all(&bytes)?;
    Ok(())
}
