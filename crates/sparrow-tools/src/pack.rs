//! Writes a model whose pruned matrices are stored as bitmaps: smaller, and mapped as it is read.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use sparrow::internals::checkpoint::config::{describe_bitmaps, parse_config};
use sparrow::internals::checkpoint::{
    Checkpoint, Directory, ModelFiles, TensorInfo, bitmap_pending, bitmap_prefix, fingerprint, pretty, read_json,
    shard_name,
};
use sparrow::internals::record::SidecarFile;
use sparrow::internals::spec::ModelSpec;
use sparrow::internals::tensor::{BitmapTensor, Weight};
use sparrow::internals::weights::NEURON_MAJOR;
use sparrow::{Cpu, Error, Result, WeightsFormat};
use sparrow_kernels::{BitmapParts, DType};

/// Bytes of the original that one file is made from, and that are in memory at a time.
const SHARD_BYTES: usize = 1 << 30;

/// What to pack, and how.
#[derive(Debug, Clone, Default)]
pub struct PackOptions {
    /// Quantise what is packed to int8 or int4 without zero points; `None`: as it is.
    pub dtype: Option<DType>,
    /// Which matrices.
    pub format: WeightsFormat,
}

/// One packed matrix.
#[derive(Debug, Clone, Serialize)]
pub struct PackedTensor {
    /// Its name in the original.
    pub name: String,
    /// Element type, as packed.
    pub dtype: String,
    /// `[rows, cols]`.
    pub shape: [usize; 2],
    /// Stored elements ÷ all.
    pub density: f64,
    /// Size in the original.
    pub bytes_before: u64,
    /// Size packed.
    pub bytes_after: u64,
}

/// Packs the model in `dir` into the new directory `out`; `progress(done, total)` counts bytes of the original. Tensors that are
/// not packed stay as they are, and so do the other files, but for a `quantization_config` in `config.json`, which says what
/// compressed-tensors has words for: nothing of int4, of neuron-major matrices and of a packed embedding.
///
/// # Errors
/// If the model cannot be read or is packed already, `out` exists or cannot be written, or no matrix is worth packing.
pub fn pack(
    dir: &Path,
    out: &Path,
    options: &PackOptions,
    cpu: &Cpu,
    mut progress: impl FnMut(u64, u64),
) -> Result<Vec<PackedTensor>> {
    let files = ModelFiles::open(dir)?;
    files.require_model()?;
    if let Some(dtype) = options.dtype.filter(|&dtype| !dtype.is_quantized() || !BitmapParts::supports(dtype)) {
        let message = format!("bitmaps are quantised to int8, int4 or int4-g128, not to {dtype}");
        return Err(Error::option("dtype", message));
    }
    let config = files.json("config.json")?.unwrap_or_default();
    let spec = parse_config(&files.path_of("config.json"), &config)?;
    let checkpoint = files.checkpoint()?;
    if checkpoint.tensors().any(|info| info.name.ends_with(".bitmask")) {
        return Err(Error::option("model", format!("{} is packed already", dir.display())));
    }
    let directory = Directory::create(out)?;
    let shards = shards(&checkpoint);
    let total = checkpoint.tensors().map(|t| t.bytes as u64).sum();
    let (mut packed, mut weight_map, mut written, mut done) = (Vec::new(), serde_json::Map::new(), 0, 0);
    progress(0, total);
    for (i, infos) in shards.iter().enumerate() {
        let mut tensors = Vec::with_capacity(infos.len());
        for info in infos {
            let tensor = pack_one(&checkpoint, &spec, info, options, cpu)?;
            done += info.bytes as u64;
            progress(done, total);
            tensors.push(tensor);
        }
        let mut pending = Vec::new();
        for (info, tensor) in infos.iter().zip(&tensors) {
            match tensor {
                None => pending.push(checkpoint.pending(info)),
                Some(tensor) => {
                    packed.push(PackedTensor::new(info, tensor));
                    pending.extend(bitmap_pending(tensor, &bitmap_prefix(&info.name).expect("a weight")));
                }
            }
        }
        let name = if shards.len() == 1 { "model.safetensors".to_owned() } else { shard_name(i, shards.len()) };
        weight_map.extend(pending.iter().map(|t| (t.name.clone(), name.as_str().into())));
        written += pending.iter().map(|t| t.len).sum::<usize>();
        directory.safetensors(&name, pending)?;
    }
    if packed.is_empty() {
        let message = format!(
            "no matrix of {} has enough zeros to be worth packing: prune it first (`sparrow prune`), or ask for it with \
             --weights-format bitmap",
            dir.display()
        );
        return Err(Error::option("model", message));
    }
    if shards.len() > 1 {
        directory.index(written, weight_map)?;
    }
    files.copy_companions(&directory, SidecarFile::NAME)?;
    if let Some(config) = described(config, &spec, &checkpoint, options, &packed) {
        directory.text("config.json", &pretty(&config))?;
    }
    copy_sidecar(dir, &directory)?;
    directory.finish()?;
    Ok(packed)
}

/// The tensors of each file, in the order of their names.
fn shards(checkpoint: &Checkpoint) -> Vec<Vec<TensorInfo>> {
    let mut shards: Vec<(usize, Vec<TensorInfo>)> = Vec::new();
    for info in checkpoint.tensors() {
        match shards.last_mut() {
            Some((size, list)) if *size + info.bytes <= SHARD_BYTES => {
                *size += info.bytes;
                list.push(info);
            }
            _ => shards.push((info.bytes, vec![info])),
        }
    }
    shards.into_iter().map(|(_, list)| list).collect()
}

/// The tensor as a bitmap, if it is a matrix of a layer, or the head, that `options` want packed.
fn pack_one(
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    info: &TensorInfo,
    options: &PackOptions,
    cpu: &Cpu,
) -> Result<Option<BitmapTensor>> {
    let is_weight = bitmap_prefix(&info.name).is_some();
    let Some(tensor) = checkpoint.tensor(info)?.filter(|_| is_weight && spec.is_of_layer_or_head(&info.name)) else {
        return Ok(None);
    };
    let stored = Weight::from(tensor);
    let mut weight = stored.clone();
    let format = options.format.of(&info.name);
    // Zeros are counted before quantising, which makes more of them.
    let worth = format.prefers_bitmap(&weight);
    if let Some(dtype) = options.dtype.filter(|_| worth) {
        weight = weight.quantized(dtype, &cpu.compute)?;
    }
    let packed = match (worth, &weight) {
        (true, Weight::Dense(tensor)) => Some(BitmapTensor::pack(tensor, &cpu.compute)?),
        _ => None,
    };
    stored.release();
    Ok(packed)
}

/// `config.json` with the `quantization_config` by which compressed-tensors, and with it transformers, loads what was packed. None
/// where they could not: transformers does not tie a head to an embedding that was a bitmap. Nor where there is one already, of
/// layers that came quantised.
fn described(
    mut config: Value,
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    options: &PackOptions,
    packed: &[PackedTensor],
) -> Option<Value> {
    let tensors: Vec<TensorInfo> = checkpoint.tensors().collect();
    let is_packed = |name: &str| packed.iter().any(|tensor| tensor.name == name);
    if options.dtype.is_some_and(|dtype| dtype != DType::I8)
        || config.get("quantization_config").is_some_and(|there| !there.is_null())
        || tensors.iter().any(|info| info.name.ends_with(NEURON_MAJOR))
        || spec.tied && is_packed(&format!("{}.weight", spec.head()))
    {
        return None;
    }
    let matrices = tensors.iter().filter(|info| info.shape.len() == 2 && spec.is_of_layer_or_head(&info.name));
    let unpacked = matrices.map(|info| info.name.as_str()).filter(|name| !is_packed(name));
    let layers = unpacked.filter_map(|name| name.strip_suffix(".weight"));
    // By the name of its module, whatever the tensor is called.
    let dense: Vec<&str> = layers.map(|name| if name == spec.head() { spec.names.head } else { name }).collect();
    let zeros: f64 = packed.iter().map(|t| (1.0 - t.density) * t.shape.map(|n| n as f64).iter().product::<f64>()).sum();
    let all: usize = tensors.iter().map(|info| info.shape.iter().product::<usize>()).sum();
    config["quantization_config"] = describe_bitmaps(&dense, options.dtype.is_some(), zeros / all as f64);
    Some(config)
}

/// The sidecar of the original, for the weights as they are now.
fn copy_sidecar(dir: &Path, directory: &Directory) -> Result<()> {
    let path = dir.join(SidecarFile::NAME);
    if !path.is_file() {
        return Ok(());
    }
    let mut json = read_json(&path)?;
    json["fingerprint"] = fingerprint(&Checkpoint::open(directory.path())?).into();
    directory.text(SidecarFile::NAME, &pretty(&json))?;
    let (from, to) = (dir.join(SidecarFile::TENSORS), directory.path().join(SidecarFile::TENSORS));
    if from.is_file() {
        std::fs::copy(&from, &to).map_err(Error::io(&from))?;
    }
    Ok(())
}

impl PackedTensor {
    fn new(info: &TensorInfo, tensor: &BitmapTensor) -> Self {
        PackedTensor {
            name: info.name.clone(),
            dtype: tensor.dtype().to_string(),
            shape: [tensor.rows(), tensor.cols()],
            density: tensor.bitmap().density(),
            bytes_before: info.bytes as u64,
            bytes_after: tensor.byte_len(),
        }
    }
}
