//! Linear layers over weights stored `[in, out]`, which can skip inputs.

use super::add_rows::Coefficients;
use super::check::check_ids;
use super::linear::LinearPart;
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
/// As [`INPUTS`] of a bitmap, whose rows are added several at once, and gain more from long blocks.
const BITMAP_INPUTS: usize = 128;
/// The fewest blocks worth their partial sums.
const MIN_BLOCKS: usize = 4;
/// The most blocks: rows are fetched ahead within a block, and partial sums are added up at the end.
const MAX_BLOCKS: usize = 32;

/// How the inputs of a weight are cut into blocks: by their number alone, so that sums depend on nothing else.
struct Blocks {
    inputs: usize,
    size: usize,
    number: usize,
}

impl Blocks {
    fn of(w: Stored, inputs: usize) -> Self {
        let fewest = match w {
            Stored::Dense(_) => INPUTS,
            Stored::Bitmap(_) => BITMAP_INPUTS,
        };
        let size = inputs.div_ceil((inputs / fewest).clamp(1, MAX_BLOCKS)).next_multiple_of(8);
        Blocks { inputs, size, number: inputs.div_ceil(size.max(1)) }
    }
}

impl Compute {
    /// out\[r\] = Σᵢ x\[r, i\] · W\[i, :\] + bias, over the inputs i in `inputs` only, for each part: input sparsity (TEAL, arXiv
    /// 2408.14690).
    ///
    /// `x` is `[m, k]`, indexed by the input's number even with `inputs`; the weights of a part are `[k, n]`, one row per
    /// **input**, its bias `[n]`, its result `[m, n]`, overwritten; `inputs` holds ascending row numbers of the weights, and
    /// `None` means all. A few activations take one parallel region for all parts. The result does not depend on the number
    /// of threads.
    ///
    /// Error at most (inputs + 2) · 2⁻²⁴ · (Σᵢ |x·W| + |bias|). For more than 8 activations
    /// [`Isa::Amx`](crate::Isa::Amx) and [`Isa::Avx512Bf16`](crate::Isa::Avx512Bf16) first round x of bf16 weights, and
    /// AMX both x and W of weights quantised in groups, to bf16: 2⁻⁸ · Σᵢ |x·W| more for each rounding. For int8 weights
    /// tiers with vectors round x times the scales of the inputs to 16-bit integers, a row with its largest magnitude as 32512: up to half
    /// a step per input more. They do so too for weights quantised in groups and up to 8 activations, the largest
    /// magnitude being that of eight inputs; with AVX512-VNNI also for int8. Of a bf16 bitmap's subnormal and
    /// infinite values see [`linear`](Self::linear).
    ///
    /// # Panics
    /// If a length does not match these shapes, or an input is not below k.
    pub fn linear_in_out(&self, x: &[f32], m: usize, inputs: Option<&[u32]>, parts: &mut [LinearPart]) {
        for part in parts.iter() {
            let (k, n) = (part.weights.rows(), part.weights.cols());
            assert_eq!(x.len(), m * k, "linear_in_out: x.len() is not m * k = {m} * {k}");
            assert_eq!(part.out.len(), m * n, "linear_in_out: out.len() is not m * n = {m} * {n}");
            if let Some(bias) = part.bias {
                assert_eq!(bias.len(), n, "linear_in_out: bias.len() is not n = {n}");
            }
        }
        // All have the inputs of the first, where there is an activation.
        let Some(first) = parts.first().filter(|_| m > 0) else { return };
        check_ids("linear_in_out", "inputs", inputs.unwrap_or_default(), first.weights.rows());
        // What several parts can share a region for: a few activations, whose parts all take this way.
        if parts.iter().all(|part| self.by_inputs(part.weights, m, inputs)) {
            return self.in_out_by_inputs(x, m, inputs, parts);
        }
        for part in parts {
            self.in_out_alone(x, m, inputs, part);
        }
    }

    /// Activations that one pass over the weights covers.
    fn few_in_out(&self, w: Stored) -> usize {
        let kernel = self.kernels.bitmap_axpy[w.dtype() as usize].filter(|_| matches!(w, Stored::Bitmap(_)));
        kernel.map_or(FEW, |kernel| kernel.few)
    }

    /// Whether blocks of inputs are added up in one pass.
    fn by_inputs(&self, w: Stored, m: usize, inputs: Option<&[u32]>) -> bool {
        let count = inputs.map_or(w.rows(), <[u32]>::len);
        m <= self.few_in_out(w) && (count >= MIN_BLOCKS * INPUTS || matches!(w, Stored::Bitmap(_)))
    }

    fn in_out_alone(&self, x: &[f32], m: usize, inputs: Option<&[u32]>, part: &mut LinearPart) {
        let &mut LinearPart { weights: w, bias, ref mut out } = part;
        let (k, n, few) = (w.rows(), w.cols(), self.few_in_out(w));
        let count = inputs.map_or(k, <[u32]>::len);
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
                    let out = &mut out[t * n..tokens.end * n];
                    self.in_out_by_inputs(x, tokens.len(), inputs, &mut [LinearPart { weights: w, bias, out }]);
                }
            }
        }
    }

    /// Whole rows, at full bandwidth: blocks of inputs with a partial sum each.
    fn in_out_by_inputs(&self, x: &[f32], m: usize, inputs: Option<&[u32]>, parts: &mut [LinearPart]) {
        let exact = m <= FEW;
        let blocks_of = |w: Stored| Blocks::of(w, inputs.map_or(w.rows(), <[u32]>::len));
        let sums_of = |p: &LinearPart| blocks_of(p.weights).number * p.out.len();
        let work = parts.iter().map(|p| p.out.len() * blocks_of(p.weights).inputs).sum();
        let tasks = parts.iter().map(|p| blocks_of(p.weights).number).sum();
        let mut scratch = self.workers.scratch.take(parts.iter().map(sums_of).sum());
        let sums = SharedMut::new(&mut scratch);
        let shared = &*parts;
        self.workers.parallel(tasks, work, &|task| {
            let (mut b, mut at) = (task, 0);
            for part in shared {
                let (w, n) = (part.weights, part.out.len());
                let blocks = blocks_of(w);
                if b >= blocks.number {
                    (b, at) = (b - blocks.number, at + blocks.number * n);
                    continue;
                }
                // SAFETY: each block has its own stretch.
                let sum = unsafe { sums.part(at + b * n..at + (b + 1) * n) };
                sum.fill(0.0);
                let these = b * blocks.size..blocks.inputs.min((b + 1) * blocks.size);
                let (rows, a, columns) = match inputs {
                    Some(ids) => (RowSet::Ids(&ids[these.clone()]), x, Some(&ids[these])),
                    None => (RowSet::Range(these.clone()), &x[these.start..], None),
                };
                self.add_rows(w, rows, Coefficients { a, stride: w.rows(), columns, exact }, m, sum);
                return;
            }
        });
        let (scratch, mut at) = (&*scratch, 0);
        for LinearPart { weights, bias, out } in parts {
            let (blocks, n, all) = (blocks_of(*weights).number, weights.cols(), out.len());
            self.workers.split_mut_indexed(out, blocks, &|start, out| {
                for (i, value) in out.iter_mut().enumerate() {
                    *value = bias.map_or(0.0, |b| b[(start + i) % n]);
                }
                for b in 0..blocks {
                    let part = &scratch[at + b * all + start..][..out.len()];
                    // SAFETY: the table holds only kernels that this CPU can run.
                    unsafe { (self.kernels.add_assign)(out, part) };
                }
            });
            at += blocks * all;
        }
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
