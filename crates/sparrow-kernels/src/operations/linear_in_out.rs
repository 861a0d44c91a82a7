//! Linear layers over weights stored `[in, out]`, which can skip inputs.

use super::add_rows::Coefficients;
use super::check::check_ids;
use crate::compute::Compute;
use crate::dtype::{DType, Matrix, Stored};
use crate::kernels::axpy::AxpyRows;
use crate::kernels::gemm::{Gemm, Layout, Part};
use crate::parallel::{Buffer, SharedMut};
use crate::rows::{COLUMN_STEP, FEW, RowSet, Rows};

/// Activations that one pass over a block of columns covers, so that their results stay in L1.
const TOKENS: usize = 8;
/// The fewest columns of a task: shorter runs of a row waste bandwidth.
const MIN_COLS: usize = 256;
/// The most columns of a task, so that the results of [`TOKENS`] activations stay in L1.
const MAX_COLS: usize = 1024;
/// The fewest inputs of a block with its own partial sum.
const INPUTS: usize = 64;
/// The fewest blocks worth their partial sums, and the most.
const MIN_BLOCKS: usize = 4;
const MAX_BLOCKS: usize = 64;
/// The same for a bitmap, whose rows are added whole, several at once, and gain more from long blocks.
const BITMAP_INPUTS: usize = 128;
const BITMAP_MAX_BLOCKS: usize = 32;
/// Inputs that are added to one stretch of a partial sum before the next.
const CHUNK: usize = 32;

impl Compute {
    /// out\[r\] = Σᵢ x\[r, i\] · W\[i, :\] + bias, over the inputs i in `inputs` only: input sparsity (TEAL, arXiv
    /// 2408.14690).
    ///
    /// `x` is `[m, k]`, indexed by the input's number even with `inputs`; `w` is `[k, n]`, one row per **input**;
    /// `inputs` holds ascending row numbers of `w`, and `None` means all; `bias` is `[n]`; `out` is `[m, n]`,
    /// overwritten. The result does not depend on the number of threads.
    ///
    /// Error at most (inputs + 2) · 2⁻²⁴ · (Σᵢ |x·W| + |bias|). For more than 8 activations
    /// [`Isa::Amx`](crate::Isa::Amx) first rounds x of bf16 weights, and both x and W of weights quantised in groups, to
    /// bf16: 2⁻⁸ · Σᵢ |x·W| more for each rounding. For int8 weights tiers with vectors
    /// round x times the scales of the inputs to 16-bit integers, a row with its largest magnitude as 32512: up to half
    /// a step per input more. Of a bf16 bitmap's subnormal and
    /// infinite values see [`linear`](Self::linear).
    ///
    /// # Panics
    /// If a length does not match these shapes, or an input is not below k.
    pub fn linear_in_out<'a>(
        &self,
        x: &[f32],
        m: usize,
        w: impl Into<Stored<'a>>,
        inputs: Option<&[u32]>,
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let w = w.into();
        let (k, n) = (w.rows(), w.cols());
        assert_eq!(x.len(), m * k, "linear_in_out: x.len() is not m * k = {m} * {k}");
        assert_eq!(out.len(), m * n, "linear_in_out: out.len() is not m * n = {m} * {n}");
        if let Some(bias) = bias {
            assert_eq!(bias.len(), n, "linear_in_out: bias.len() is not n = {n}");
        }
        check_ids("linear_in_out", "inputs", inputs.unwrap_or_default(), k);
        let count = inputs.map_or(k, <[u32]>::len);
        let kernel = self.kernels.bitmap_axpy[w.dtype() as usize].filter(|_| matches!(w, Stored::Bitmap(_)));
        let few = kernel.map_or(FEW, |kernel| kernel.few);
        if m > few
            && count > 0
            && let Some(gemm) = self.kernels.gemm[w.dtype() as usize]
        {
            let part = Part { weights: w, bias, out: SharedMut::new(out) };
            let int8 = w.dtype() == DType::I8;
            let gathered = (int8 || inputs.is_some()).then(|| self.gather(x, k, w, inputs));
            let x = gathered.as_deref().unwrap_or(x);
            let int16 = int8.then(|| self.quantize_activations(x, m));
            let gemm_of = |parts| Gemm {
                x,
                int16: int16.as_ref(),
                m,
                k: count,
                layout: Layout::InOut,
                ids: inputs,
                parts,
                expand: self.expander(),
                decode: self.kernels.decode_codes[w.dtype() as usize],
                pack: None,
            };
            // SAFETY: the table holds only kernels that this CPU can run; the shapes and ids were checked, and out is
            // borrowed mutably.
            unsafe { gemm(&self.workers, &gemm_of(&[part])) };
            return;
        }
        match w {
            Stored::Dense(w) if m > TOKENS || count < MIN_BLOCKS * INPUTS => {
                self.in_out_by_columns(x, m, w, inputs, bias, out);
            }
            _ => {
                for t in (0..m).step_by(few) {
                    let tokens = t..m.min(t + few);
                    let x = &x[t * k..tokens.end * k];
                    self.in_out_by_inputs(x, tokens.len(), w, inputs, bias, &mut out[t * n..tokens.end * n]);
                }
            }
        }
    }

    /// Whole rows, at full bandwidth: blocks of inputs with a partial sum each.
    fn in_out_by_inputs(
        &self,
        x: &[f32],
        m: usize,
        w: Stored,
        inputs: Option<&[u32]>,
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let (k, n, exact) = (w.rows(), w.cols(), m <= FEW);
        let count = inputs.map_or(k, <[u32]>::len);
        let (fewest, most, chunk) = match w {
            Stored::Dense(_) => (INPUTS, MAX_BLOCKS, CHUNK),
            Stored::Bitmap(_) => (BITMAP_INPUTS, BITMAP_MAX_BLOCKS, usize::MAX),
        };
        let block = count.div_ceil((count / fewest).clamp(1, most)).next_multiple_of(8);
        let blocks = count.div_ceil(block.max(1));
        let mut scratch = self.workers.scratch.take(blocks * m * n);
        let sums = SharedMut::new(&mut scratch);
        self.workers.parallel(blocks, m * n * count, &|b| {
            // SAFETY: each block has its own stretch.
            let sum = unsafe { sums.part(b * m * n..(b + 1) * m * n) };
            sum.fill(0.0);
            let end = count.min((b + 1) * block);
            for from in (b * block..end).step_by(chunk) {
                let part = from..end.min(from.saturating_add(chunk));
                let (rows, a, columns) = match inputs {
                    Some(ids) => (RowSet::Ids(&ids[part.clone()]), x, Some(&ids[part])),
                    None => (RowSet::Range(part), &x[from..], None),
                };
                self.add_rows(w, rows, Coefficients { a, stride: k, columns, exact }, m, sum);
            }
        });
        let scratch = &*scratch;
        self.workers.split_mut_indexed(out, blocks, &|start, out| {
            for (i, value) in out.iter_mut().enumerate() {
                *value = bias.map_or(0.0, |b| b[(start + i) % n]);
            }
            for b in 0..blocks {
                let part = &scratch[b * m * n + start..][..out.len()];
                // SAFETY: the table holds only kernels that this CPU can run.
                unsafe { (self.kernels.add_assign)(out, part) };
            }
        });
    }

    /// Blocks of columns, for few inputs or many activations.
    fn in_out_by_columns(
        &self,
        x: &[f32],
        m: usize,
        w: Matrix,
        inputs: Option<&[u32]>,
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let (k, n) = (w.rows(), w.cols());
        let work = m * n * inputs.map_or(k, <[u32]>::len);
        let cols = n.div_ceil(self.workers.tasks(n, work)).next_multiple_of(COLUMN_STEP).clamp(MIN_COLS, MAX_COLS);
        let out = SharedMut::new(out);
        self.workers.parallel(n.div_ceil(cols), work, &|task| {
            let (start, end) = (task * cols, n.min((task + 1) * cols));
            for r in 0..m {
                // SAFETY: only this task uses these columns.
                let row = unsafe { out.part(r * n + start..r * n + end) };
                match bias {
                    Some(bias) => row.copy_from_slice(&bias[start..end]),
                    None => row.fill(0.0),
                }
            }
            for t in (0..m).step_by(TOKENS) {
                let args = AxpyRows {
                    rows: Rows::of(w, inputs),
                    start,
                    cols: end - start,
                    a: x[t * k..].as_ptr(),
                    a_stride: k,
                    columns: inputs.map_or(std::ptr::null(), <[u32]>::as_ptr),
                    m: TOKENS.min(m - t),
                    out: out.pointer(t * n + start),
                    out_stride: n,
                };
                // SAFETY: the table holds only kernels that this CPU can run; the ids are below k, start..end are
                // columns of w, and only this task writes them.
                unsafe { (self.kernels.axpy_rows[w.dtype() as usize])(&args) };
            }
        });
    }
}

impl Compute {
    /// Columns `ids` of x `[m, k]`, or all, times the scales of their rows of `w` if it is int8.
    fn gather(&self, x: &[f32], k: usize, w: Stored, ids: Option<&[u32]>) -> Buffer<'_> {
        let (m, count) = (x.len() / k, ids.map_or(k, <[u32]>::len));
        let id = |i: usize| ids.map_or(i, |ids| ids[i] as usize);
        let mut scales = self.workers.scratch.take(count);
        for (i, scale) in scales.iter_mut().enumerate() {
            *scale = w.int8_scale(id(i));
        }
        let scales = &*scales;
        let mut gathered = self.workers.scratch.take(m * count);
        self.workers.split_rows(&mut gathered, count, count, &|t, row| {
            for (i, (value, scale)) in row.iter_mut().zip(scales).enumerate() {
                *value = x[t * k + id(i)] * scale;
            }
        });
        gathered
    }
}
