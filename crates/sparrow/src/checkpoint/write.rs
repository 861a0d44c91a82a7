//! Writes a model directory: everything goes to a temporary directory beside it, which is renamed when complete, so
//! that an interruption never leaves half a model.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, View};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// A tensor whose bytes are made when they are written, one tensor at a time.
pub struct Pending<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its type there.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Size of what `bytes` returns.
    pub len: usize,
    /// Makes the bytes, little-endian.
    pub bytes: Box<dyn Fn() -> Cow<'a, [u8]> + 'a>,
}

impl View for &Pending<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        (self.bytes)()
    }
    fn data_len(&self) -> usize {
        self.len
    }
}

/// A directory under construction; removed again unless [`finish`](Self::finish)ed or made to be gone on with.
pub struct Directory {
    target: PathBuf,
    temporary: PathBuf,
    kept: bool,
    /// Of a directory that is gone on with: held until it is finished or given up.
    _lock: Option<File>,
}

impl Directory {
    /// Starts the directory that will be `target`.
    ///
    /// # Errors
    /// If `target` exists, or its parent cannot be written.
    pub fn create(target: &Path) -> Result<Self> {
        let name = refuse_existing(target)?;
        let prefix = format!(".{}.", name.to_string_lossy());
        remove_stale(target, &prefix);
        let temporary = target.with_file_name(format!("{prefix}{}.tmp", std::process::id()));
        std::fs::create_dir_all(&temporary).map_err(Error::io(&temporary))?;
        Ok(Directory { target: target.to_owned(), temporary, kept: false, _lock: None })
    }

    /// Starts the directory that will be `target`, or goes on with what an interrupted run left of it: `target` with `suffix`
    /// added.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn resume(target: &Path, suffix: &str) -> Result<Self> {
        let mut name = refuse_existing(target)?.to_owned();
        name.push(suffix);
        let temporary = target.with_file_name(name);
        std::fs::create_dir_all(&temporary).map_err(Error::io(&temporary))?;
        let lock = lock(&temporary)?;
        Ok(Directory { target: target.to_owned(), temporary, kept: true, _lock: lock })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Whether anything is in it that was written whole.
    pub fn has_files(&self) -> Result<bool> {
        for entry in std::fs::read_dir(&self.temporary).map_err(Error::io(&self.temporary))? {
            let name = entry.map_err(Error::io(&self.temporary))?.file_name();
            if !name.to_string_lossy().ends_with(PARTIAL) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes text to a file of the directory, which is there whole or not at all.
    pub fn text(&self, name: &str, text: &str) -> Result<()> {
        let path = self.temporary.join(name);
        let partial = partial(&path);
        std::fs::write(&partial, text).map_err(Error::io(&partial))?;
        std::fs::rename(&partial, &path).map_err(Error::io(&path))
    }

    /// Writes one safetensors file, which is there whole or not at all.
    pub fn safetensors(&self, name: &str, tensors: Vec<Pending>) -> Result<()> {
        let target = self.temporary.join(name);
        let path = partial(&target);
        // The format's library writes files that only their owner reads: give them the usual permissions.
        std::fs::write(&path, []).map_err(Error::io(&path))?;
        let permissions = std::fs::metadata(&path).map_err(Error::io(&path))?.permissions();
        let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let views = tensors.iter().map(|t| (t.name.clone(), t));
        safetensors::serialize_to_file(views, Some(metadata), &path)
            .map_err(|e| Error::safetensors(&target, format!("cannot be written: {e}")))?;
        std::fs::set_permissions(&path, permissions).map_err(Error::io(&path))?;
        std::fs::rename(&path, &target).map_err(Error::io(&target))
    }

    /// Writes tensors into files of about `shard_bytes`: `model.safetensors`, or shards and their index.
    pub fn shards(&self, tensors: Vec<Pending>, shard_bytes: usize, mut progress: impl FnMut(u64)) -> Result<()> {
        let total: usize = tensors.iter().map(|t| t.len).sum();
        let mut shards: Vec<(usize, Vec<Pending>)> = Vec::new();
        for tensor in tensors {
            match shards.last_mut() {
                Some((size, list)) if *size + tensor.len <= shard_bytes => {
                    *size += tensor.len;
                    list.push(tensor);
                }
                _ => shards.push((tensor.len, vec![tensor])),
            }
        }
        let count = shards.len();
        let mut weight_map = serde_json::Map::new();
        for (i, (size, list)) in shards.into_iter().enumerate() {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => shard_name(i, count),
            };
            weight_map.extend(list.iter().map(|t| (t.name.clone(), Value::from(name.as_str()))));
            self.safetensors(&name, list)?;
            progress(size as u64);
        }
        if count > 1 {
            self.index(total, weight_map)?;
        }
        Ok(())
    }

    /// Writes the index of shards that hold `total` bytes; `weight_map` has the file of each tensor.
    pub fn index(&self, total: usize, weight_map: serde_json::Map<String, Value>) -> Result<()> {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        self.text("model.safetensors.index.json", &pretty(&index))
    }

    /// Moves the complete directory to its place.
    pub fn finish(mut self) -> Result<()> {
        std::fs::rename(&self.temporary, &self.target).map_err(Error::io(&self.target))?;
        self.kept = true;
        Ok(())
    }
}

/// The name of shard `i`, from 0, of `count`.
pub fn shard_name(i: usize, count: usize) -> String {
    format!("model-{:05}-of-{count:05}.safetensors", i + 1)
}

/// Ends the name of a file while it is being written.
const PARTIAL: &str = ".partial";

fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(PARTIAL);
    name.into()
}

/// Keeps other processes from going on with `dir` too. The system gives it up with the process, however that ends.
fn lock(dir: &Path) -> Result<Option<File>> {
    if cfg!(not(unix)) {
        // Directories cannot be opened there.
        return Ok(None);
    }
    let file = File::open(dir).map_err(Error::io(dir))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(Error::option("output", format!("another process is writing {}", dir.display())))
        }
        // File systems without locks are left to the user's care.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(file)),
    }
}

/// The name of the directory `target`, which must not be there.
fn refuse_existing(target: &Path) -> Result<&OsStr> {
    if target.exists() {
        let message = format!("{} already exists: choose another, or remove it first", target.display());
        return Err(Error::option("output", message));
    }
    target.file_name().ok_or_else(|| Error::option("output", "must name a directory"))
}

/// Removes what killed processes left of the same target; a process that still runs keeps its own.
fn remove_stale(target: &Path, prefix: &str) {
    let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(".tmp")).map(str::parse::<u32>);
        if let Some(Ok(process)) = process
            && cfg!(target_os = "linux")
            && !Path::new(&format!("/proc/{process}")).exists()
        {
            // A failure leaves it for the next time.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing to do about a failure here: the error that led here is being reported.
            let _ = std::fs::remove_dir_all(&self.temporary);
        }
    }
}

/// JSON as people read it.
pub fn pretty(value: &impl serde::Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("plain data serialises");
    text.push('\n');
    text
}
