//! GGUF files: models like those they were made from, tokenizers, and what is refused.

mod malformed;
mod models;
mod tokenizers;

use std::path::PathBuf;

use sparrow_testing::gguf::GgufFile;

/// The file on disk; it is removed with the directory.
fn written(file: &GgufFile) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    (dir, path)
}
