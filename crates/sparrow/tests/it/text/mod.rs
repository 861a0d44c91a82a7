//! Between text and tokens.

mod declared;
mod pieces;
mod stream;

use std::path::PathBuf;
use std::sync::Arc;

use sparrow::Tokenizer;
use sparrow_testing::*;

/// The demo model's tokenizer, and published ones where they are there, by name.
fn tokenizers() -> Vec<(String, Arc<Tokenizer>)> {
    let published = shared_data("tokenizers").map(|dir| {
        let mut dirs: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        dirs.retain(|dir| dir.join("tokenizer.json").exists());
        dirs.sort();
        dirs
    });
    let dirs = std::iter::once(demo_dir()).chain(published.unwrap_or_default());
    dirs.map(|dir| (dir.display().to_string(), Arc::new(Tokenizer::load(&dir).unwrap()))).collect()
}
