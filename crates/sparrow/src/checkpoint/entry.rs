//! A stored tensor: where its bytes are, and what must be done to them.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;
use sparrow_kernels::DType;

use super::gguf::{Coded, element_name};
use crate::error::Result;
use crate::tensor::{Bytes, MappedFile, Memory, Tensor};

/// A tensor of a file.
#[derive(Debug)]
pub(super) struct Entry {
    pub file: Arc<MappedFile>,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// In the file.
    pub range: Range<usize>,
    /// Where the bytes of the file are not those of `dtype`.
    pub coded: Option<Coded>,
    /// The type of blocks that it consists of, where it is to stay so; `dtype` is then that of bytes.
    pub blocks: Option<DType>,
}

/// Name, dtype, shape and bytes of one stored tensor.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Name in the checkpoint.
    pub name: String,
    /// Dtype that it is read in.
    pub dtype: Dtype,
    /// What the file calls its type, where that is another.
    pub stored_as: Option<&'static str>,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Size on disk.
    pub bytes: usize,
}

impl TensorInfo {
    /// The dtype as kernels name it, if they compute with it.
    pub fn float(&self) -> Option<DType> {
        kernel_dtype(self.dtype)
    }

    /// Dtype and shape of a matrix that kernels compute with.
    pub fn matrix(&self) -> Option<(DType, [usize; 2])> {
        Some((self.float()?, self.shape.as_slice().try_into().ok()?))
    }
}

impl Entry {
    /// The part `range` of a file, as it is.
    pub fn plain(file: Arc<MappedFile>, dtype: Dtype, shape: Vec<usize>, range: Range<usize>) -> Self {
        Entry { file, dtype, shape, range, coded: None, blocks: None }
    }

    pub fn info(&self, name: &str) -> TensorInfo {
        TensorInfo {
            name: name.to_owned(),
            dtype: self.dtype,
            stored_as: self.coded.map(|coded| element_name(coded.from)),
            shape: self.shape.clone(),
            bytes: self.range.len(),
        }
    }

    /// What kernels call the type, if they compute with it.
    pub fn kernel_dtype(&self) -> Option<DType> {
        self.blocks.or(kernel_dtype(self.dtype))
    }

    /// The bytes that the file has of it.
    pub fn stored(&self) -> &[u8] {
        &self.file.bytes()[self.range.clone()]
    }

    /// Bytes of its content.
    pub fn len(&self) -> usize {
        match self.coded {
            None => self.range.len(),
            Some(coded) => {
                let (columns, rows) = self.shape.split_last().expect("there is a dimension");
                rows.iter().product::<usize>() * coded.dtype.row_bytes(*columns)
            }
        }
    }

    /// Its content: mapped, or made in memory.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn bytes(&self) -> Result<Bytes> {
        let Some(coded) = self.coded else { return Ok(Bytes::mapped(&self.file, self.range.clone())) };
        let mut memory = Memory::zeroed(self.len())?;
        coded.decode(&self.shape, self.stored(), &mut memory);
        // The system may have the pages of the file back.
        Bytes::mapped(&self.file, self.range.clone()).release();
        Bytes::of(memory)
    }

    /// Its content, as a matrix.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes).
    pub fn tensor(&self, dtype: DType, rows: usize, cols: usize) -> Result<Tensor> {
        Ok(Tensor::of(self.bytes()?, dtype, rows, cols))
    }

    /// Its content, to be written.
    pub fn content(&self) -> Cow<'_, [u8]> {
        let Some(coded) = self.coded else { return Cow::Borrowed(self.stored()) };
        let mut out = vec![0; self.len()];
        coded.decode(&self.shape, self.stored(), &mut out);
        Cow::Owned(out)
    }
}

/// The dtype as kernels name it, if they compute with it.
pub(super) fn kernel_dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// Our dtype's name in the file format.
pub fn file_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        quantized => unreachable!("tensors in {quantized} are never written"),
    }
}
