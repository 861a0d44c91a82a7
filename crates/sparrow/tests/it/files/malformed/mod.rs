//! Broken model directories: each is refused with a message that names the file and what is wrong with it, without a
//! panic, without waiting, and without asking for much memory.

mod architectures;
mod bitmaps;
mod configurations;
mod directories;
mod downloads;
mod safetensors;
mod shards;
mod sidecars;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use sparrow::DType;
use sparrow_testing::tiny::{self, TensorFile, tensors, write, write_shards, write_sidecar};

/// Remembers the largest allocation of each thread: other tests run at the same time, and what is judged runs on one.
struct Largest;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn saw(size: usize) {
    LARGEST.set(LARGEST.get().max(size));
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        saw(layout.size());
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        saw(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        saw(size);
        // SAFETY: as in `alloc`.
        unsafe { System.realloc(old, layout, size) }
    }
    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Largest = Largest;

/// A name, how to break the good model, and what the message must contain.
type Case = (&'static str, Box<dyn Fn(&Path)>, Vec<String>);

fn case(name: &'static str, breaks: impl Fn(&Path) + 'static, says: &[&str]) -> Case {
    (name, Box::new(breaks), says.iter().map(|s| s.to_string()).collect())
}

/// Every case fails in the way it says; all failures are reported together.
fn check(cases: Vec<Case>) {
    const LIMIT: usize = 16 << 20;
    let mut wrong = Vec::new();
    for (name, breaks, says) in cases {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("model");
        fs::create_dir(&dir).unwrap();
        tiny::write_model(&dir);
        breaks(&dir);
        let (send, done) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let loaded = tiny::load_and_step(&dir).map_err(|e| e.to_string());
            send.send((loaded, LARGEST.get()))
        });
        let done = done.recv_timeout(Duration::from_secs(30));
        if let Ok((_, largest @ LIMIT..)) = done {
            wrong.push(format!("{name}: asked for {largest} bytes of memory at once"));
        }
        match done.map(|(loaded, _)| loaded) {
            Ok(Err(message)) => {
                let missing: Vec<_> = says.iter().filter(|s| !message.contains(s.as_str())).collect();
                if !missing.is_empty() {
                    wrong.push(format!("{name}: {message:?} does not say {missing:?}"));
                }
                if message.len() > 1000 {
                    wrong.push(format!("{name}: a message of {} bytes", message.len()));
                }
            }
            Ok(Ok(())) => wrong.push(format!("{name}: was accepted")),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                wrong.push(format!("{name}: still loading after 30 s"));
                continue;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => wrong.push(format!("{name}: panicked")),
        }
        let _ = thread.join();
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_good_models_load() {
    for dtype in [None, Some(DType::I8), Some(DType::I4G32)] {
        let dir = tempfile::tempdir().unwrap();
        tiny::write_model(dir.path());
        tiny::write_packed(dir.path(), dtype);
        tiny::load_and_step(dir.path()).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    tiny::write_model(dir.path());
    tiny::load_and_step(dir.path()).unwrap();
    write_sidecar(dir.path());
    tiny::load_and_step(dir.path()).unwrap();
    fs::remove_file(dir.path().join("sparrow.json")).unwrap();
    write_shards(dir.path());
    tiny::load_and_step(dir.path()).unwrap();
}

/// The tensor that is broken where any would do.
const UP: &str = "model.layers.1.mlp.up_proj.weight";

/// Edits the good file of weights.
fn tensor_file(edit: impl Fn(&mut TensorFile) + 'static) -> impl Fn(&Path) {
    move |dir| {
        let mut file = TensorFile::new(&tensors());
        edit(&mut file);
        write(&dir.join("model.safetensors"), file.bytes());
    }
}

/// A named pipe that nobody writes to: reading it waits for ever.
fn pipe(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}
