//! Where the panels of a task come from: weights as they are stored, or a bitmap that is expanded block by block.

use super::{Engine, Gemm, Layout, MAX_ROWS, Panel, StoredRows};
use crate::dtype::bitmap::{mask_row_bytes, unit_bytes, units};
use crate::dtype::{Bitmap, Matrix, Stored};
use crate::parallel::{AlignedBuffer, Scratch};
use crate::rows::COLUMN_STEP;
use std::ops::Range;

/// The weights of the outputs of one task, on whose stack it lives.
#[allow(clippy::large_enum_variant)]
pub(super) enum Source<'a> {
    Stored { weights: Matrix<'a>, gemm: &'a Gemm<'a>, outputs: Range<usize> },
    Expanded(Expanded<'a>),
}

/// A bitmap's, of which a panel (`[out, in]`) or a block (`[in, out]`) is expanded at a time: scratch that stays in a
/// cache.
pub(super) struct Expanded<'a> {
    gemm: &'a Gemm<'a>,
    weights: Bitmap<'a>,
    outputs: Range<usize>,
    scratch: AlignedBuffer<'a>,
    /// `[out, in]`: where the elements of each output that no block has taken begin, as offsets count.
    positions: [usize; MAX_ROWS],
}

impl<'a> Source<'a> {
    pub(super) fn new<E: Engine>(
        scratch: &'a Scratch,
        gemm: &'a Gemm<'a>,
        weights: Stored<'a>,
        outputs: Range<usize>,
    ) -> Self {
        let weights = match weights {
            Stored::Dense(weights) => return Source::Stored { weights, gemm, outputs },
            Stored::Bitmap(weights) => weights,
        };
        let mut positions = [0; MAX_ROWS];
        let bytes = match gemm.layout {
            Layout::OutIn => {
                for (position, row) in positions.iter_mut().zip(outputs.clone()) {
                    *position = weights.parts().offsets[row] as usize;
                }
                E::ROWS * weights.dtype().row_bytes(E::BLOCK)
            }
            Layout::InOut => E::BLOCK * weights.dtype().row_bytes(outputs.end - first_column(&outputs)),
        };
        let scratch = scratch.take_aligned(bytes);
        Source::Expanded(Expanded { gemm, weights, outputs, scratch, positions })
    }

    /// Before the panels of `len` inputs from `k` on.
    pub(super) fn start_block(&mut self, k: usize, len: usize) {
        if let Source::Expanded(from) = self
            && from.gemm.layout == Layout::InOut
        {
            from.expand_inputs(k, len);
        }
    }

    /// `rows` outputs from `row` on by `len` inputs from `k` on; blocks and panels are asked for in order, each once.
    pub(super) fn panel(&mut self, row: usize, rows: usize, k: usize, len: usize) -> Panel<'_> {
        let from = match self {
            Source::Stored { weights, gemm, .. } => {
                return Panel { weights: *weights, layout: gemm.layout, ids: gemm.ids, row, rows, k, len };
            }
            Source::Expanded(from) => from,
        };
        let (layout, dtype) = (from.gemm.layout, from.weights.dtype());
        let (row, [height, width]) = match layout {
            Layout::OutIn => {
                from.expand_outputs(row, rows, k, len);
                (0, [rows, len])
            }
            Layout::InOut => {
                let first = first_column(&from.outputs);
                (row - first, [len, from.outputs.end - first])
            }
        };
        let weights = Matrix::new(dtype, height, width, &from.scratch[..height * dtype.row_bytes(width)]);
        Panel { weights, layout, ids: None, row, rows, k: 0, len }
    }

    /// What will be read of `len` inputs from `k` on, the next block.
    pub(super) fn ahead(&self, k: usize, len: usize) -> Ahead<'_> {
        match self {
            Source::Stored { weights, gemm, outputs } => {
                let (row, rows) = (outputs.start, outputs.len());
                let panel = Panel { weights: *weights, layout: gemm.layout, ids: gemm.ids, row, rows, k, len };
                Ahead::Stored(panel.stored_rows())
            }
            Source::Expanded(from) => Ahead::Expanded { from, k, len },
        }
    }
}

/// Parts of bitmap rows begin at multiples of [`COLUMN_STEP`].
fn first_column(outputs: &Range<usize>) -> usize {
    outputs.start / COLUMN_STEP * COLUMN_STEP
}

impl Expanded<'_> {
    /// The stored row of input `i`.
    fn input(&self, i: usize) -> usize {
        self.gemm.ids.map_or(i, |ids| ids[i] as usize)
    }

    fn expand_outputs(&mut self, row: usize, rows: usize, k: usize, len: usize) {
        let bytes = self.weights.dtype().row_bytes(len);
        for (row, to) in (row..row + rows).zip(self.scratch.chunks_exact_mut(bytes)) {
            let position = &mut self.positions[row - self.outputs.start];
            *position = self.gemm.expand.part(&self.weights, row, k..k + len, *position, to);
        }
    }

    fn expand_inputs(&mut self, k: usize, len: usize) {
        let (w, columns) = (&self.weights, first_column(&self.outputs)..self.outputs.end);
        let bytes = w.dtype().row_bytes(columns.len());
        for i in 0..len {
            let row = self.input(k + i);
            let before = units(w.dtype(), &w.mask_row(row)[..columns.start / 8]);
            let position = (w.parts().offsets[row] + before) as usize;
            let to = &mut self.scratch[i * bytes..(i + 1) * bytes];
            self.gemm.expand.part(w, row, columns.clone(), position, to);
        }
    }
}

/// The part of a task's weights that the next block reads.
pub(super) enum Ahead<'a> {
    Stored(StoredRows<'a>),
    Expanded { from: &'a Expanded<'a>, k: usize, len: usize },
}

impl Ahead<'_> {
    /// Pieces to ask for.
    pub(super) fn count(&self) -> usize {
        match self {
            Ahead::Stored(rows) => rows.count,
            Ahead::Expanded { from, len, .. } => match from.gemm.layout {
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
        let (from, k, len) = match self {
            Ahead::Stored(rows) => return [(rows.at(i), rows.bytes), (std::ptr::null(), 0)],
            Ahead::Expanded { from, k, len } => (from, *k, *len),
        };
        let (w, parts, cols) = (&from.weights, from.weights.parts(), from.weights.cols());
        let (row, columns) = match from.gemm.layout {
            Layout::OutIn => (from.outputs.start + i, k..k + len),
            Layout::InOut => (from.input(k + i), from.outputs.clone()),
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
