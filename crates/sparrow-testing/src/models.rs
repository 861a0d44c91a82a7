//! Real models, which are too large to be part of a checkout.

use std::path::PathBuf;

/// The directory of a model that `benchmarks/models/get.sh` fetches into `$SPARROW_MODELS`; a note and none where it is absent.
pub fn real_model(name: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("SPARROW_MODELS").map(|models| PathBuf::from(models).join(name));
    let found = dir.filter(|dir| dir.join("config.json").is_file());
    if found.is_none() {
        eprintln!("skipped: needs models");
    }
    found
}
