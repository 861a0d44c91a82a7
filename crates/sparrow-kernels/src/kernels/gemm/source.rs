//! Where the panels of a task come from: weights as they are stored, or what is made of them panel by panel or block by
//! block, in scratch that stays in a cache: bitmaps are expanded, codes decoded if the engine wants floats.

use super::{Engine, Gemm, Layout, MAX_ROWS, Panel, StoredRows};
use crate::dtype::bitmap::{mask_row_bytes, unit_bytes, units};
use crate::dtype::{Bitmap, DType, Matrix, Stored};
use crate::kernels::decode_codes::{DecodeCodes, DecodeCodesFn};
use crate::parallel::{AlignedBuffer, Scratch};
use crate::rows::COLUMN_STEP;
use std::ops::Range;

/// The weights of the outputs of one task, on whose stack it lives.
pub(super) struct Source<'a> {
    gemm: &'a Gemm<'a>,
    weights: Stored<'a>,
    outputs: Range<usize>,
    /// Of codes that are decoded.
    decode: Option<DecodeCodesFn>,
    /// Rows of a bitmap, expanded.
    expanded: AlignedBuffer<'a>,
    /// Rows of codes, decoded.
    decoded: AlignedBuffer<'a>,
    /// Of a bitmap `[out, in]`: where the elements of each output that no block has taken begin, as offsets count.
    positions: [usize; MAX_ROWS],
}

impl<'a> Source<'a> {
    pub(super) fn new<E: Engine>(
        scratch: &'a Scratch,
        gemm: &'a Gemm<'a>,
        weights: Stored<'a>,
        outputs: Range<usize>,
    ) -> Self {
        let dtype = weights.dtype();
        let decode = gemm.decode.filter(|_| E::DECODES && dtype.is_quantized() && dtype != DType::I8);
        // Rows and columns that are made at once.
        let (rows, cols) = match gemm.layout {
            Layout::OutIn => (E::ROWS, E::BLOCK),
            Layout::InOut => (E::BLOCK, outputs.end - first_column(&outputs)),
        };
        let mut positions = [0; MAX_ROWS];
        let mut expanded = 0;
        if let Stored::Bitmap(weights) = weights {
            expanded = rows * dtype.row_bytes(cols);
            if gemm.layout == Layout::OutIn {
                for (position, row) in positions.iter_mut().zip(outputs.clone()) {
                    *position = weights.parts().offsets[row] as usize;
                }
            }
        }
        let decoded = decode.map_or(0, |_| rows * DType::F32.row_bytes(cols));
        let [expanded, decoded] = [expanded, decoded].map(|bytes| scratch.take_aligned(bytes));
        Source { gemm, weights, outputs, decode, expanded, decoded, positions }
    }

    /// Before the panels of `len` inputs from `k` on.
    pub(super) fn start_block(&mut self, k: usize, len: usize) {
        let as_stored = matches!(self.weights, Stored::Dense(_)) && self.decode.is_none();
        if self.gemm.layout == Layout::InOut && !as_stored {
            let columns = first_column(&self.outputs)..self.outputs.end;
            for i in 0..len {
                let row = self.gemm.ids.map_or(k + i, |ids| ids[k + i] as usize);
                self.make(i, row, columns.clone());
            }
        }
    }

    /// `rows` outputs from `row` on by `len` inputs from `k` on; blocks and panels are asked for in order, each once.
    pub(super) fn panel(&mut self, row: usize, rows: usize, k: usize, len: usize) -> Panel<'_> {
        let &Gemm { layout, ids, pack, .. } = self.gemm;
        let dtype = self.weights.dtype();
        if let (Stored::Dense(weights), None) = (self.weights, self.decode) {
            return Panel { weights, layout, ids, row, rows, k, len, pack };
        }
        let (row, [height, width]) = match layout {
            Layout::OutIn => {
                (row..row + rows).enumerate().for_each(|(i, row)| self.make(i, row, k..k + len));
                (0, [rows, len])
            }
            Layout::InOut => {
                let first = first_column(&self.outputs);
                (row - first, [len, self.outputs.end - first])
            }
        };
        let (made, dtype) = if self.decode.is_some() { (&self.decoded, DType::F32) } else { (&self.expanded, dtype) };
        let weights = Matrix::new(dtype, height, width, &made[..height * dtype.row_bytes(width)]);
        Panel { weights, layout, ids: None, row, rows, k: 0, len, pack }
    }

    /// Columns of a stored row, as row `i` of what is made.
    fn make(&mut self, i: usize, row: usize, columns: Range<usize>) {
        let (dtype, len) = (self.weights.dtype(), columns.len());
        let (from, cols, c) = match &self.weights {
            Stored::Dense(weights) => (weights.row(row), weights.cols(), columns.start),
            Stored::Bitmap(weights) => {
                let bytes = dtype.row_bytes(len);
                let to = &mut self.expanded[i * bytes..(i + 1) * bytes];
                match self.gemm.layout {
                    Layout::OutIn => {
                        let position = &mut self.positions[row - self.outputs.start];
                        *position = self.gemm.expand.part(weights, row, columns, *position, to);
                    }
                    Layout::InOut => {
                        let before = units(dtype, &weights.mask_row(row)[..columns.start / 8]);
                        let position = (weights.parts().offsets[row] + before) as usize;
                        self.gemm.expand.part(weights, row, columns, position, to);
                    }
                }
                (&*to, len, 0)
            }
        };
        if let Some(decode) = self.decode {
            let out = self.decoded[i * 4 * len..(i + 1) * 4 * len].as_mut_ptr().cast();
            // SAFETY: the table holds only kernels that this CPU can run; the row has the columns, and the scratch is
            // aligned and has room for them.
            unsafe { decode(&DecodeCodes { row: from.as_ptr(), cols, c, count: len, out }) };
        }
    }

    /// What will be read of `len` inputs from `k` on, the next block.
    pub(super) fn ahead(&self, k: usize, len: usize) -> Ahead<'_> {
        match self.weights {
            Stored::Dense(weights) => {
                let (row, rows) = (self.outputs.start, self.outputs.len());
                let &Gemm { layout, ids, pack, .. } = self.gemm;
                let panel = Panel { weights, layout, ids, row, rows, k, len, pack };
                Ahead::Stored(panel.stored_rows())
            }
            Stored::Bitmap(weights) => Ahead::Bitmap { from: self, weights, k, len },
        }
    }
}

/// Parts of rows begin at multiples of [`COLUMN_STEP`].
fn first_column(outputs: &Range<usize>) -> usize {
    outputs.start / COLUMN_STEP * COLUMN_STEP
}

/// The part of a task's weights that the next block reads.
pub(super) enum Ahead<'a> {
    Stored(StoredRows<'a>),
    Bitmap { from: &'a Source<'a>, weights: Bitmap<'a>, k: usize, len: usize },
}

impl Ahead<'_> {
    /// Pieces to ask for.
    pub(super) fn count(&self) -> usize {
        match self {
            Ahead::Stored(rows) => rows.count,
            Ahead::Bitmap { from, len, .. } => match from.gemm.layout {
                Layout::OutIn => {
                    if *len > 0 {
                        from.outputs.len()
                    } else {
                        0
                    }
                }
                Layout::InOut => *len,
            },
        }
    }

    /// Piece `i`: an address and a number of bytes, of a bitmap those of its mask and its values, which are estimated.
    pub(super) fn piece(&self, i: usize) -> [(*const u8, usize); 2] {
        let (from, w, k, len) = match self {
            Ahead::Stored(rows) => return [(rows.at(i), rows.bytes), (std::ptr::null(), 0)],
            Ahead::Bitmap { from, weights, k, len } => (from, weights, *k, *len),
        };
        let (parts, cols) = (w.parts(), w.cols());
        let (row, columns) = match from.gemm.layout {
            Layout::OutIn => (from.outputs.start + i, k..k + len),
            Layout::InOut => (from.gemm.ids.map_or(k + i, |ids| ids[k + i] as usize), from.outputs.clone()),
        };
        let [start, end] = [parts.offsets[row] as usize, parts.offsets[row + 1] as usize];
        let position = match from.gemm.layout {
            Layout::OutIn => from.positions[i],
            Layout::InOut => start + (end - start) * columns.start / cols,
        };
        let unit = unit_bytes(w.dtype());
        let mask = parts.mask.as_ptr().wrapping_add(row * mask_row_bytes(cols) + columns.start / 8);
        let values = parts.values.as_ptr().wrapping_add(position * unit);
        [(mask, columns.len() / 8 + 1), (values, (end - start) * columns.len() / cols * unit + 64)]
    }
}
