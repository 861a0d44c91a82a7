//! One GGUF file: header, metadata, and where its tensors are.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use sparrow_kernels::DType;

use super::element;
use super::reader::Reader;
use super::value::Metadata;
use crate::error::Result;
use crate::tensor::{MappedFile, damage};

/// What GGUF files begin with.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// Most dimensions that the format allows.
const MAX_DIMENSIONS: u32 = 4;

/// A tensor of a file.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    pub file: Arc<MappedFile>,
    pub dtype: DType,
    /// Rows before columns: the file has them the other way round.
    pub shape: Vec<usize>,
    /// In the file.
    pub range: Range<usize>,
}

/// The tensors of a model, by the names of the files.
pub type Tensors = BTreeMap<String, StoredTensor>;

/// Reads the header of the file at `path`, and adds its tensors.
pub(super) fn read(path: &Path, tensors: &mut Tensors) -> Result<Metadata> {
    let file = MappedFile::open(path)?;
    damage::check(path, file.bytes())?;
    let mut reader = Reader::new(path, file.bytes());
    if file.bytes().first_chunk() != Some(&MAGIC) {
        return Err(reader.error("does not begin with \"GGUF\": it is no GGUF file, or its download is damaged"));
    }
    reader.u32("the header")?;
    match reader.u32("the version")? {
        2 | 3 => {}
        1 => {
            return Err(
                reader.error("has version 1 of the format, which nothing writes any more: convert the model again")
            );
        }
        old if old.swap_bytes() <= 16 => {
            return Err(reader.error("is written for big-endian machines: convert it, or take another"));
        }
        new => return Err(reader.error(format!("has version {new} of the format: 2 and 3 can be read"))),
    }
    // A tensor takes a name's length, a number of dimensions, one of them, a type and an offset at least; a key its length and a type.
    let tensor_count = reader.count(32, "the number of tensors")?;
    let key_count = reader.count(12, "the number of keys")?;
    let mut metadata = Metadata { path: path.to_owned(), ..Metadata::default() };
    for i in 0..key_count {
        let key = reader.string(&format!("key {i}"))?;
        let value = reader.value(&key)?;
        if metadata.values.insert(key.clone(), value).is_some() {
            return Err(metadata.error(&key, "is there twice"));
        }
    }
    let headers = headers(&mut reader, tensor_count)?;
    let alignment = metadata.usize("general.alignment", 1..=1 << 30)?.unwrap_or(32);
    if !alignment.is_power_of_two() {
        return Err(metadata.error("general.alignment", format!("must be a power of two, found {alignment}")));
    }
    let data = reader.position().next_multiple_of(alignment);
    for Header { name, dtype, shape, offset } in headers {
        let range = placed(dtype, &shape, offset, alignment as u64, data, file.bytes().len()).map_err(|problem| {
            reader.error(format!("tensor {name} of {} {shape:?}: {problem}", element::name(dtype)))
        })?;
        let tensor = StoredTensor { file: file.clone(), dtype, shape, range };
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(reader.error(format!("tensor {name} is there twice")));
        }
    }
    Ok(metadata)
}

struct Header {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    offset: u64,
}

fn headers(reader: &mut Reader, count: usize) -> Result<Vec<Header>> {
    let mut headers = Vec::new();
    for i in 0..count {
        let what = format!("the description of tensor {i} of {count}");
        let name = reader.string(&what)?;
        let dimensions = reader.u32(&what)?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            let message = format!("tensor {name} has {dimensions} dimensions: 1 to {MAX_DIMENSIONS} are allowed");
            return Err(reader.error(message));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = reader.u64(&what)?;
            match usize::try_from(size).ok().filter(|&size| size > 0) {
                Some(size) => shape.push(size),
                None => return Err(reader.error(format!("tensor {name} has a dimension of {size}"))),
            }
        }
        shape.reverse();
        let dtype = element::of(reader.u32(&what)?).map_err(|unknown| {
            reader.error(format!("tensor {name} is of type {unknown}: {} can be read", element::readable()))
        })?;
        headers.push(Header { name, dtype, shape, offset: reader.u64(&what)? });
    }
    Ok(headers)
}

/// Where a tensor is, or what is wrong with that.
fn placed(
    dtype: DType,
    shape: &[usize],
    offset: u64,
    alignment: u64,
    data: usize,
    end: usize,
) -> std::result::Result<Range<usize>, String> {
    let columns = *shape.last().expect("there is a dimension");
    if !columns.is_multiple_of(element::elements(dtype)) {
        return Err(format!("rows of {columns} are not whole blocks of {}", element::elements(dtype)));
    }
    if !offset.is_multiple_of(alignment) {
        return Err(format!("its offset {offset} is not a multiple of {alignment}"));
    }
    let row_bytes = columns.checked_mul(4).map(|_| dtype.row_bytes(columns)).ok_or("more bytes than there can be")?;
    let size = shape[..shape.len() - 1].iter().try_fold(row_bytes, |product, &n| product.checked_mul(n));
    let size = size.ok_or("more bytes than there can be")?;
    let start = usize::try_from(offset).ok().and_then(|offset| data.checked_add(offset));
    match start.and_then(|start| Some(start..start.checked_add(size)?)) {
        Some(range) if range.end <= end => Ok(range),
        _ => Err(format!(
            "needs {size} bytes from offset {offset} on, but the file ends at byte {end}: its download is not complete"
        )),
    }
}
