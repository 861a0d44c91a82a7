//! Layers as compressed-tensors (llm-compressor) stores them when quantised, turned into Sparrow's own quantised rows.
//!
//! | tensor | dtype, shape | |
//! |---|---|---|
//! | `LAYER.weight` | I8 `[rows, cols]` | `int-quantized`: codes |
//! | `LAYER.weight_packed` | I32 `[rows, ⌈cols · bits / 32⌉]` | `pack-quantized`: codes above 0, the first in the lowest bits |
//! | `LAYER.weight_shape` | I64 `[2]` | with packed weights: rows and columns |
//! | `LAYER.weight_scale` | F32, F16 or BF16; `[rows, groups]`, or 1 in all | |
//! | `LAYER.weight_zero_point` | I32 `[⌈rows · 4 / 32⌉, groups]` | int4 only: packed down the rows |
//!
//! Int8 keeps its codes and its scale per row. Int4 keeps its codes; scales are rounded to f16, which is exact for f16 and for
//! bf16 in f16's range, and a scale that f16 cannot hold to its 11 bits is refused. A scale per row
//! becomes one per group, and a scale of 64 columns one for each 32.

use half::f16;
use safetensors::Dtype;
use sparrow_kernels::{DType, assemble_int4, assemble_int8, decode};

use super::entry::kernel_dtype;
use super::rows::fill_rows;
use super::safetensors::{Checkpoint, Part};
use crate::error::Result;
use crate::tensor::Tensor;

/// Zero point of symmetric int4 codes.
const MIDDLE: u8 = 8;

/// What the tensors of the weights `name` begin with, if they are stored quantised.
pub(super) fn layer_of<'a>(checkpoint: &Checkpoint, name: &'a str) -> Option<&'a str> {
    let layer = name.strip_suffix(".weight")?;
    let packed = checkpoint.stores(&format!("{layer}.weight_packed"));
    (packed || checkpoint.described(name).is_some_and(|(dtype, _)| dtype == Dtype::I8)).then_some(layer)
}

/// The weights `[rows, cols]` of a layer, in memory.
///
/// # Errors
/// If a tensor is missing or has another dtype or shape, or they contradict each other or hold what a quantised row cannot.
pub(super) fn read(checkpoint: &mut Checkpoint, layer: &str, rows: usize, cols: usize) -> Result<Tensor> {
    if checkpoint.stores(&format!("{layer}.weight_packed")) {
        let shape = format!("{layer}.weight_shape");
        let stored = checkpoint.part(&shape, &[Dtype::I64], &[Some(2)])?;
        let stored: Vec<i64> = stored.bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect();
        if stored != [rows as i64, cols as i64] {
            return Err(checkpoint.wrong(&shape, format!("[{rows}, {cols}]"), format!("{stored:?}")));
        }
        let name = format!("{layer}.weight_packed");
        let packed = checkpoint.part(&name, &[Dtype::I32], &[Some(rows), None])?;
        let words = |bits: usize| (cols * bits).div_ceil(32);
        match packed.shape[1] {
            n if n == words(4) => int4(checkpoint, layer, rows, cols, &packed),
            // Packed codes are 128 above the signed ones.
            n if n == words(8) => int8(checkpoint, layer, rows, cols, &packed, 0x80),
            n => {
                let expected = format!("rows of {} or {} words, for 4 or 8 bits a weight", words(4), words(8));
                Err(checkpoint.wrong(&name, expected, format!("{n} words")))
            }
        }
    } else {
        let codes = checkpoint.part(&format!("{layer}.weight"), &[Dtype::I8], &[Some(rows), Some(cols)])?;
        int8(checkpoint, layer, rows, cols, &codes, 0)
    }
}

/// Codes of a byte each, rows of whole words, that `flip` makes signed.
fn int8(checkpoint: &mut Checkpoint, layer: &str, rows: usize, cols: usize, codes: &Part, flip: u8) -> Result<Tensor> {
    let zero_point = format!("{layer}.weight_zero_point");
    if checkpoint.stores(&zero_point) {
        let expected = "no zero points with weights of 8 bits".into();
        return Err(checkpoint.wrong(&zero_point, expected, "some".into()));
    }
    let Scales { values, groups } = Scales::read(checkpoint, layer, rows)?;
    if groups != 1 {
        let (name, found) = (format!("{layer}.weight_scale"), format!("{groups} in a row"));
        return Err(checkpoint.wrong(&name, "one scale per row for weights of 8 bits".into(), found));
    }
    let stride = codes.bytes.len() / rows;
    let tensor = in_rows(DType::I8, rows, cols, |row, out| {
        let codes = &codes.bytes[row * stride..][..cols];
        let signed: Vec<i8> = codes.iter().map(|&code| (code ^ flip) as i8).collect();
        assemble_int8(&signed, values[row], out);
    })?;
    codes.bytes.release();
    Ok(tensor)
}

/// Codes of a nibble each, rows of whole words.
fn int4(checkpoint: &mut Checkpoint, layer: &str, rows: usize, cols: usize, packed: &Part) -> Result<Tensor> {
    let Scales { values, groups } = Scales::read(checkpoint, layer, rows)?;
    let name = format!("{layer}.weight_scale");
    // Elements that share a scale here, and how many of such groups share one in the file.
    let (group, shared) = match groups {
        n if n == cols.div_ceil(32) => (32, 1),
        n if n == cols.div_ceil(128) || n == 1 => (128, 1),
        n if n == cols.div_ceil(64) => (32, 2),
        n => {
            let expected = format!("a scale per row, or one for every 32, 64 or 128 of the {cols} columns");
            return Err(checkpoint.wrong(&name, expected, format!("{n} in a row")));
        }
    };
    let mut scales = Vec::with_capacity(values.len());
    for &value in &values {
        let scale = f16::from_f32(value);
        if (scale.to_f32() - value).abs() > value.abs() * f32::powi(2.0, -11) || !value.is_finite() {
            let expected = "scales that f16 holds to 11 bits (magnitudes of 6.1e-5 to 65504, or 0)".into();
            return Err(checkpoint.wrong(&name, expected, format!("{value:e}")));
        }
        scales.push(scale);
    }
    let zero_point = format!("{layer}.weight_zero_point");
    let zeros = match checkpoint.stores(&zero_point) {
        false => None,
        true => {
            let words = rows.div_ceil(8);
            Some(checkpoint.part(&zero_point, &[Dtype::I32], &[Some(words), Some(groups)])?)
        }
    };
    let zero_of = |row: usize, g: usize| match &zeros {
        None => MIDDLE,
        Some(zeros) => nibble(&zeros.bytes[(row / 8 * groups + g) * 4..], row % 8),
    };
    let dtype = match (group, &zeros) {
        (32, None) => DType::I4G32,
        (32, Some(_)) => DType::I4G32Z,
        (_, None) => DType::I4G128,
        (_, Some(_)) => DType::I4G128Z,
    };
    let stride = packed.bytes.len() / rows;
    let tensor = in_rows(dtype, rows, cols, |row, out| {
        let words = &packed.bytes[row * stride..][..stride];
        let codes: Vec<u8> = (0..cols).map(|i| nibble(words, i)).collect();
        let stored = |g: usize| {
            let g = (g / shared).min(groups - 1);
            (scales[row * groups + g], zero_of(row, g))
        };
        let parts: Vec<(f16, u8)> = (0..cols.div_ceil(group)).map(stored).collect();
        assemble_int4(dtype, &codes, &parts, out);
    })?;
    packed.bytes.release();
    Ok(tensor)
}

/// The nibble `index` of little-endian words, the first in the lowest bits.
fn nibble(words: &[u8], index: usize) -> u8 {
    words[index / 2] >> (4 * (index % 2)) & 0xf
}

/// The scales of a layer.
struct Scales {
    /// `[rows, groups]`.
    values: Vec<f32>,
    groups: usize,
}

impl Scales {
    fn read(checkpoint: &mut Checkpoint, layer: &str, rows: usize) -> Result<Self> {
        let name = format!("{layer}.weight_scale");
        let shape = checkpoint.described(&name).map_or(Vec::new(), |(_, shape)| shape.to_vec());
        let for_all = shape.iter().product::<usize>() == 1;
        let expected: Vec<_> = match (for_all, shape.len()) {
            (true, _) => shape.iter().copied().map(Some).collect(),
            (_, 1) => vec![Some(rows)],
            _ => vec![Some(rows), None],
        };
        let part = checkpoint.part(&name, &[Dtype::F32, Dtype::F16, Dtype::BF16], &expected)?;
        let groups = if for_all { 1 } else { part.shape.get(1).copied().unwrap_or(1) };
        let dtype = kernel_dtype(part.dtype).expect("one of the three");
        let mut values = vec![0.0; part.shape.iter().product()];
        decode(dtype, &part.bytes, &mut values);
        if for_all {
            values = vec![values[0]; rows];
        }
        match values.iter().find(|value| !value.is_finite()) {
            Some(bad) => Err(checkpoint.wrong(&name, "finite scales".into(), bad.to_string())),
            None if groups == 0 => Err(checkpoint.wrong(&name, "a scale per row at least".into(), "none".into())),
            None => Ok(Scales { values, groups }),
        }
    }
}

/// A tensor in memory that `fill` writes row by row, on all cores.
fn in_rows(dtype: DType, rows: usize, cols: usize, fill: impl Fn(usize, &mut [u8]) + Sync) -> Result<Tensor> {
    Tensor::in_memory(dtype, rows, cols, |out| fill_rows(out, dtype.row_bytes(cols), || (), |(), i, row| fill(i, row)))
}
