//! The `*.safetensors` files of a directory: one file, or shards through `model.safetensors.index.json`.
//! Format: <https://huggingface.co/docs/safetensors>.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde_json::Value;
use sparrow_kernels::DType;

use super::entry::{Entry, TensorInfo, file_dtype};
use super::fields::{Fields, read_json};
use super::gguf::{Gguf, Matrices, StoredTensor, element_name};
use super::write::Pending;
use super::{absent, prefix};
use crate::error::{Error, Result};
use crate::spec::names::{self, TensorNames};
use crate::tensor::{Bytes, MappedFile, Tensor, damage};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Every tensor of a checkpoint, by name; the files are mapped, nothing is read yet.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    entries: BTreeMap<String, Entry>,
    taken: BTreeSet<String>,
}

/// What of a checkpoint is decoded when it is read.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// The types that the file has.
    pub from: Vec<&'static str>,
    /// What most of it becomes.
    pub to: DType,
    /// What that takes of memory.
    pub bytes: u64,
}

/// One stored tensor that other tensors belong to.
pub struct Part {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Bytes,
}

impl Checkpoint {
    /// Maps the checkpoint of `dir`: `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// If there is neither, a shard is missing, a header is malformed (truncated, oversized, overlapping or
    /// out-of-bounds ranges, sizes that do not match shapes), or the index disagrees with the shards.
    pub fn open(dir: &Path) -> Result<Self> {
        if Gguf::is_at(dir) {
            return Self::of_gguf(&Gguf::open(dir)?, Matrices::Decoded(None), false);
        }
        let mut checkpoint = Checkpoint { dir: dir.to_owned(), entries: BTreeMap::new(), taken: BTreeSet::new() };
        // A link that leads nowhere is there, to be told of.
        let [single, index] =
            [SINGLE, INDEX].map(|name| dir.join(name)).map(|p| p.symlink_metadata().is_ok().then_some(p));
        match (single, index) {
            (Some(single), _) => checkpoint.add_file(&single)?,
            (None, Some(index)) => checkpoint.add_shards(&index)?,
            (None, None) => {
                let mend = absent::mend(dir, "download the model's weights");
                return Err(Error::safetensors(dir, format!("has neither {SINGLE} nor {INDEX}: {mend}")));
            }
        }
        checkpoint.call_as_usual();
        Ok(checkpoint)
    }

    /// The tensors of a GGUF file by the names of a Hugging Face checkpoint, matrices as `matrices` says. With `blank` those that
    /// would have to be made are zeros instead.
    ///
    /// # Errors
    /// If the file describes what is not supported.
    pub fn of_gguf(gguf: &Gguf, matrices: Matrices, blank: bool) -> Result<Self> {
        let placed = gguf.placed(matrices)?;
        let entries = placed.into_iter().map(|placed| {
            let StoredTensor { file, shape, range, .. } = placed.tensor.clone();
            let blocks = Some(placed.dtype).filter(|dtype| dtype.is_quantized());
            let dtype = if blocks.is_some() { Dtype::U8 } else { file_dtype(placed.dtype) };
            let mut coded = placed.coded;
            coded.iter_mut().for_each(|coded| coded.blank = blank);
            (placed.name, Entry { file, dtype, shape, range, coded, blocks })
        });
        let entries = entries.collect();
        Ok(Checkpoint { dir: gguf.path().to_owned(), entries, taken: BTreeSet::new() })
    }

    /// What is decoded when it is read, if any matrix is.
    pub fn decoded(&self) -> Option<Decoded> {
        let decodes = |coded: &super::gguf::Coded| !coded.blank && !coded.moves_rows();
        let matrices = || self.entries.values().filter(|entry| entry.shape.len() > 1);
        let coded = || matrices().filter_map(|entry| Some((entry, entry.coded.filter(decodes)?)));
        let names: BTreeSet<_> = coded().map(|(_, coded)| element_name(coded.from)).collect();
        let largest = coded().max_by_key(|(entry, _)| entry.len())?;
        let bytes = coded().map(|(entry, _)| entry.len() as u64).sum();
        Some(Decoded { from: names.into_iter().collect(), to: largest.1.dtype, bytes })
    }

    /// Gives tensors their usual names, where only what comes before differs.
    fn call_as_usual(&mut self) {
        let stored = self.entries.keys().map(String::as_str).collect();
        for (old, new) in prefix::usual_names(&stored) {
            if let Some(entry) = self.entries.remove(&old) {
                self.entries.insert(new, entry);
            }
        }
    }

    /// Maps a single file.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut checkpoint = Checkpoint { dir: path.to_owned(), entries: BTreeMap::new(), taken: BTreeSet::new() };
        checkpoint.add_file(path)?;
        Ok(checkpoint)
    }

    /// Adds the tensors of one more file of the same directory.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; also if a tensor is already there.
    pub fn add_file(&mut self, path: &Path) -> Result<()> {
        let file = MappedFile::open(path)?;
        damage::check(path, file.bytes())?;
        let bad = |message: String| Error::safetensors(path, message);
        let parsed = SafeTensors::deserialize(file.bytes()).map_err(|e| bad(describe(&e, file.bytes())))?;
        let base = file.bytes().as_ptr() as usize;
        for (name, view) in parsed.tensors() {
            let start = view.data().as_ptr() as usize - base;
            let range = start..start + view.data().len();
            let entry = Entry::plain(file.clone(), view.dtype(), view.shape().to_vec(), range);
            if let Some(other) = self.entries.insert(name.clone(), entry) {
                return Err(bad(format!("tensor {name} is also in {}", other.file.path().display())));
            }
        }
        Ok(())
    }

    fn add_shards(&mut self, index: &Path) -> Result<()> {
        let json = read_json(index)?;
        Fields::new(index, &json)?;
        let bad = |message: String| Error::safetensors(index, message);
        let Some(Value::Object(weight_map)) = json.get("weight_map") else {
            return Err(bad("field weight_map is missing or not an object".into()));
        };
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, shard) in weight_map {
            let Some(shard) = shard.as_str() else {
                return Err(bad(format!("weight_map.{tensor} must be a file name, found {shard}")));
            };
            if shard.contains(['/', '\\']) || ["", ".", ".."].contains(&shard) {
                return Err(bad(format!("weight_map.{tensor} must be a file name in this directory, found {shard:?}")));
            }
            shards.entry(shard).or_default().push(tensor);
        }
        if shards.is_empty() {
            return Err(bad("weight_map names no tensor".into()));
        }
        for (shard, tensors) in shards {
            let path = self.dir.join(shard);
            if path.symlink_metadata().is_err() {
                return Err(bad(format!("names shard {shard}, which is missing from the directory: download it")));
            }
            self.add_file(&path)?;
            for tensor in tensors {
                if self.entries.get(tensor).is_none_or(|e| e.file.path() != path) {
                    return Err(bad(format!("places tensor {tensor} in {shard}, which does not hold it")));
                }
            }
        }
        Ok(())
    }

    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Result<(&Entry, DType)> {
        let shape: Vec<_> = shape.iter().copied().map(Some).collect();
        let floats = [Dtype::F32, Dtype::F16, Dtype::BF16];
        let blocks = self.entries.get(name).is_some_and(|entry| entry.blocks.is_some());
        let entry = self.checked(name, if blocks { &[Dtype::U8] } else { &floats }, &shape)?;
        let dtype = entry.kernel_dtype().expect("one of the three, or blocks");
        self.taken.insert(name.to_owned());
        Ok((&self.entries[name], dtype))
    }

    /// The tensor `name`, if it is of one of `dtypes` and of `shape`, where `None` is any size.
    ///
    /// # Errors
    /// If the tensor is missing, or has another dtype or shape.
    pub fn part(&mut self, name: &str, dtypes: &[Dtype], shape: &[Option<usize>]) -> Result<Part> {
        let entry = self.checked(name, dtypes, shape)?;
        let part = Part { dtype: entry.dtype, shape: entry.shape.clone(), bytes: entry.bytes()? };
        self.taken.insert(name.to_owned());
        Ok(part)
    }

    fn checked(&self, name: &str, dtypes: &[Dtype], shape: &[Option<usize>]) -> Result<&Entry> {
        let expected = || {
            let sizes: Vec<_> = shape.iter().map(|n| n.map_or("any".to_owned(), |n| n.to_string())).collect();
            format!("shape [{}]", sizes.join(", "))
        };
        let Some(entry) = self.entries.get(name) else {
            return Err(self.wrong(name, expected(), self.instead_of(name)));
        };
        if !dtypes.contains(&entry.dtype) {
            let names: Vec<_> = dtypes.iter().map(|dtype| format!("{dtype:?}")).collect();
            let (last, others) = names.split_last().expect("some dtype is expected");
            let names = if others.is_empty() { last.clone() } else { format!("{} or {last}", others.join(", ")) };
            return Err(self.wrong(name, format!("dtype {names}"), format!("{:?}", entry.dtype)));
        }
        let fits =
            entry.shape.len() == shape.len() && entry.shape.iter().zip(shape).all(|(a, b)| b.is_none_or(|b| *a == b));
        if !fits {
            return Err(self.wrong(name, expected(), format!("shape {:?}", entry.shape)));
        }
        Ok(entry)
    }

    /// What is found where the tensor `name` is missing: others that are called alike, or any.
    fn instead_of(&self, name: &str) -> String {
        const SHOWN: usize = 3;
        let end = name.rmatch_indices('.').nth(1).map_or(name, |(at, _)| &name[at + 1..]);
        let (alike, others): (Vec<&str>, Vec<&str>) =
            self.entries.keys().map(String::as_str).partition(|n| n.ends_with(end));
        let shown: Vec<&str> = alike.into_iter().chain(others).take(SHOWN).collect();
        let hint = match name == format!("{}.weight", names::LLAMA.head) {
            true => "; if the embedding is to serve as the head, config.json must say \"tie_word_embeddings\": true",
            false => "",
        };
        format!("no such tensor among {} ({}, …){hint}", self.entries.len(), shown.join(", "))
    }

    /// Whether a tensor of that name is stored.
    pub(super) fn stores(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Dtype and shape of a stored tensor.
    pub(super) fn described(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.entries.get(name).map(|entry| (entry.dtype, entry.shape.as_slice()))
    }

    /// The error that says so of the tensor `name`.
    pub fn wrong(&self, name: &str, expected: String, found: String) -> Error {
        let path = self.entries.get(name).map_or(self.dir.as_path(), |entry| entry.file.path()).to_owned();
        Error::Tensor { path, tensor: name.to_owned(), expected, found }
    }

    /// Takes the pages of all files out of this process's resident memory and out of the page cache.
    pub fn evict(&self) {
        // Tensors of a file follow each other by name often enough; a file taken out twice is no harm.
        let mut last: Option<&Arc<MappedFile>> = None;
        for file in self.entries.values().map(|e| &e.file) {
            if !last.is_some_and(|last| Arc::ptr_eq(last, file)) {
                file.evict();
            }
            last = Some(file);
        }
    }

    /// A tensor that is a matrix kernels compute with.
    ///
    /// # Errors
    /// If it must be decoded and the memory cannot be had.
    pub fn tensor(&self, info: &TensorInfo) -> Result<Option<Tensor>> {
        let Some(((dtype, [rows, cols]), entry)) = info.matrix().zip(self.entries.get(&info.name)) else {
            return Ok(None);
        };
        entry.tensor(dtype, rows, cols).map(Some)
    }

    /// Lets the system take the pages of the tensors that `chosen` picks by name out of this process's resident memory; they
    /// come back from the page cache when touched again.
    pub fn release(&self, chosen: impl Fn(&str) -> bool) {
        for (_, entry) in self.entries.iter().filter(|(name, _)| chosen(name)) {
            Bytes::mapped(&entry.file, entry.range.clone()).release();
        }
    }

    /// The tensor as it is, to be written again.
    pub fn pending(&self, info: &TensorInfo) -> Pending<'_> {
        let entry = &self.entries[&info.name];
        let TensorInfo { name, dtype, shape, .. } = info.clone();
        Pending { name, dtype, shape, len: entry.len(), bytes: Box::new(|| entry.content()) }
    }

    /// The bytes of a tensor.
    pub fn bytes(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.entries.get(name).map(Entry::content)
    }

    /// What the files say of a tensor.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        self.entries.get_key_value(name).map(|(name, entry)| entry.info(name))
    }

    /// The directory, or the file if it was opened as one.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every stored tensor.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo> + '_ {
        self.entries.iter().map(|(name, entry)| entry.info(name))
    }

    /// The files, with a few bytes of each tensor: what identifies the checkpoint without reading it all.
    pub fn identity(&self) -> impl Iterator<Item = (&str, &[usize], &[u8])> {
        self.entries.iter().map(|(name, e)| {
            let stored = e.stored();
            let middle = stored.len() / 2;
            (name.as_str(), e.shape.as_slice(), &stored[middle..stored.len().min(middle + 256)])
        })
    }

    /// A stored tensor of a layer that nothing asked for and that could change the result: a sign that the configuration
    /// misdescribes the model.
    ///
    /// # Errors
    /// Names the first such tensor.
    pub fn refuse_unused(&self, names: &TensorNames) -> Result<()> {
        let counts = |(name, entry): &(&String, &Entry)| {
            names.is_of_layer(name) && !names::is_buffer(name) && !entry.range.is_empty() && !self.taken.contains(*name)
        };
        match self.entries.iter().find(counts) {
            None => Ok(()),
            Some((name, entry)) => Err(Error::Tensor {
                path: entry.file.path().to_owned(),
                tensor: name.clone(),
                expected: "only tensors that config.json calls for".into(),
                found: "this one too (check num_hidden_layers, attention_bias, mlp_bias and architectures)".into(),
            }),
        }
    }
}

/// The crate's errors are terse: add the tensor and the sizes that make them actionable.
fn describe(error: &SafeTensorError, bytes: &[u8]) -> String {
    let announced = bytes.first_chunk::<8>().map(|n| u64::from_le_bytes(*n));
    let header = announced.map_or("no header".into(), |n| format!("header of {n} bytes announced"));
    let detail = match error {
        SafeTensorError::TensorInvalidInfo | SafeTensorError::ValidationOverflow => misfit(bytes),
        SafeTensorError::InvalidOffset(_) => {
            misfit(bytes).or_else(|| Some("tensors must follow each other without gap or overlap".to_owned()))
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            Some("the tensors end elsewhere than the file: was it truncated?".to_owned())
        }
        _ => None,
    };
    let begins = || damage::beginning(bytes).map(|text| format!("it begins with {text}"));
    let detail = detail.or_else(begins).map_or(String::new(), |d| format!("; {d}"));
    format!("is not a valid safetensors file: {error}{detail} (file of {} bytes, {header})", bytes.len())
}

/// Which tensor of a header that is valid JSON has a shape that its bytes do not match.
fn misfit(bytes: &[u8]) -> Option<String> {
    let len = usize::try_from(u64::from_le_bytes(*bytes.first_chunk()?)).ok()?;
    let header: Value = serde_json::from_slice(bytes.get(8..)?.get(..len)?).ok()?;
    header.as_object()?.iter().filter(|(name, _)| *name != "__metadata__").find_map(|(name, info)| {
        let dtype: Dtype = serde_json::from_value(info.get("dtype")?.clone()).ok()?;
        let shape: Vec<u64> = serde_json::from_value(info.get("shape")?.clone()).ok()?;
        let (start, end): (u64, u64) = serde_json::from_value(info.get("data_offsets")?.clone()).ok()?;
        let bits = shape.iter().try_fold(dtype.bitsize() as u64, |product, &n| product.checked_mul(n));
        let needed = bits.map(|bits| bits / 8);
        if needed.is_some() && needed == end.checked_sub(start) {
            return None;
        }
        let needed = needed.map_or("more bytes than there can be".into(), |n| format!("{n} bytes"));
        Some(format!("tensor {name} of {dtype:?} {shape:?} needs {needed}, but its range is {start}..{end}"))
    })
}
