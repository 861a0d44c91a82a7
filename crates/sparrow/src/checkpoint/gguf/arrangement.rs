//! From the rows of a file to those of a Hugging Face checkpoint, as numbers that kernels compute with.

use sparrow_kernels::{DType, decode, encode};

use super::file::StoredTensor;
use crate::checkpoint::rows::fill_rows;
use crate::error::{Error, Result};
use crate::spec::{ModelSpec, NormKind};

/// What is done to a tensor besides decoding it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Arrangement {
    /// Nothing.
    AsStored,
    /// The rows of each of so many heads are put from the order of rotated pairs (llama.cpp's) into that of rotated halves.
    Halves(usize),
    /// This is taken off: the weights of norms have Gemma's 1 added already.
    Less(f32),
}

/// What is to be done to the tensor `name`.
pub(super) fn of(name: &str, tensor: &StoredTensor, spec: &ModelSpec, interleaved: bool) -> Result<Arrangement> {
    let stem = name.rsplit('.').nth(1).unwrap_or_default();
    if let NormKind::Rms { offset } = spec.norm.kind
        && offset != 0.0
        && stem.ends_with("norm")
    {
        return Ok(Arrangement::Less(offset));
    }
    let heads = match stem {
        "attn_q" => spec.num_heads,
        "attn_k" => spec.num_kv_heads,
        _ => return Ok(Arrangement::AsStored),
    };
    match interleaved {
        false => Ok(Arrangement::AsStored),
        true if tensor.shape[0] == heads * spec.head_dim => Ok(Arrangement::Halves(heads)),
        true => {
            let message = format!("has shape {:?}: {} rows are expected", tensor.shape, heads * spec.head_dim);
            Err(Error::gguf(tensor.file.path(), format!("tensor {name} {message}")))
        }
    }
}

/// A tensor that must be decoded or arranged before it is what a checkpoint has.
#[derive(Debug, Clone, Copy)]
pub(in crate::checkpoint) struct Coded {
    /// How it is stored.
    pub from: DType,
    pub(super) arrangement: Arrangement,
    /// What it becomes.
    pub dtype: DType,
    /// It becomes zeros, because nobody will look: that takes neither time nor memory.
    pub blank: bool,
}

impl Coded {
    /// Of a tensor of type `from`, to become `dtype`; `None` where its bytes can be taken as they are.
    pub(super) fn of(from: DType, arrangement: Arrangement, dtype: DType) -> Option<Self> {
        let plain = from == dtype && arrangement == Arrangement::AsStored;
        (!plain).then_some(Coded { from, arrangement, dtype, blank: false })
    }

    /// Whether only the order of rows changes.
    pub fn moves_rows(&self) -> bool {
        self.from == self.dtype && matches!(self.arrangement, Arrangement::Halves(_))
    }

    /// Writes the tensor, of `shape`, from its `stored` bytes to `out`, which is zero, on all cores.
    pub fn decode(&self, shape: &[usize], stored: &[u8], out: &mut [u8]) {
        if self.blank {
            return;
        }
        // A vector that is to be arranged has rows of one number.
        let alone = matches!(self.arrangement, Arrangement::Halves(_)) && shape.len() == 1;
        let columns = if alone { 1 } else { *shape.last().expect("there is a dimension") };
        let [row, stored_row] = [self.dtype, self.from].map(|dtype| dtype.row_bytes(columns));
        let rows = shape.iter().product::<usize>() / columns;
        fill_rows(
            out,
            row,
            || vec![0.0; columns],
            |numbers: &mut Vec<f32>, i, out| {
                let from = match self.arrangement {
                    Arrangement::Halves(heads) => paired(i, rows / heads),
                    _ => i,
                };
                let stored = &stored[from * stored_row..][..stored_row];
                if self.moves_rows() {
                    return out.copy_from_slice(stored);
                }
                decode(self.from, stored, numbers);
                if let Arrangement::Less(offset) = self.arrangement {
                    numbers.iter_mut().for_each(|number| *number -= offset);
                }
                encode(self.dtype, numbers, out);
            },
        );
    }
}

/// Where row `i` of heads of `width` rows is when rotated pairs lie side by side.
fn paired(i: usize, width: usize) -> usize {
    let (head, within) = (i / width, i % width);
    let half = width / 2;
    head * width + 2 * (within % half) + within / half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_two_heads() {
        let from: Vec<usize> = (0..12).map(|i| paired(i, 6)).collect();
        assert_eq!(from, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}
