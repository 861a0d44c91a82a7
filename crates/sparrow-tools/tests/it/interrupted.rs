//! Runs that are interrupted again and again.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use sparrow::Result;

/// Every file of a directory.
pub fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect()
}

/// Has `run` write `out`, and go on with it, interrupted after so many reports of progress each time; returns how often it was.
pub fn interrupted<T>(patience: &[usize], out: &Path, run: impl Fn(&mut dyn FnMut()) -> Result<T>) -> usize {
    let mut interrupted = 0;
    for &patience in patience {
        let mut left = patience;
        let mut report = || {
            left -= 1;
            assert!(left > 0, "interrupted, as it should be");
        };
        match catch_unwind(AssertUnwindSafe(|| run(&mut report))) {
            Ok(done) => drop(done.unwrap()),
            Err(_) => {
                interrupted += 1;
                assert!(!out.exists());
            }
        }
        if out.exists() {
            break;
        }
    }
    interrupted
}
