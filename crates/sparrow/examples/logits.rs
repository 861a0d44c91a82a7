//! Logits after a prompt of token ids, as raw little-endian f32 on standard output: for comparing engines.
//!
//! `cargo run --release -p sparrow --example logits DIR ID...`

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use sparrow::{Cpu, KvOptions, Model, SelectorSpec, Session, SessionOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: logits DIR ID...")?;
    let ids = args.map(|id| id.parse()).collect::<Result<Vec<u32>, _>>()?;

    let cpu = Arc::new(Cpu::new(None));
    let mut model = Model::load(Path::new(&dir))?;
    let selector = model.prepare(&SelectorSpec::Dense, &cpu)?;
    let options = SessionOptions { sequences: 1, capacity: ids.len(), kv: KvOptions::default() };
    let mut session = Session::new(Arc::new(model), cpu, selector, options)?;
    let bytes: Vec<u8> = session.prefill(0, &ids)?.iter().flat_map(|logit| logit.to_le_bytes()).collect();
    std::io::stdout().write_all(&bytes)?;
    Ok(())
}
