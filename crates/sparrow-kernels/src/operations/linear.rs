//! Dense linear layers over weights stored `[out, in]`.

use super::products::{Activations, Products};
use crate::compute::Compute;
use crate::dtype::{DType, Stored};
use crate::kernels::gemm::{Gemm, GemmFn, Layout, Part};
use crate::parallel::SharedMut;
use crate::rows::{FEW, RowSet};
use std::ops::Range;

/// One weight of [`Compute::linear`], with its bias and its result.
pub struct LinearPart<'a> {
    /// `[n, k]`, one row per output, as checkpoints store `nn.Linear`.
    pub weights: Stored<'a>,
    /// `[n]`.
    pub bias: Option<&'a [f32]>,
    /// `[m, n]`, overwritten.
    pub out: &'a mut [f32],
}

/// Rows of a dense weight in one task when there are many activations: a panel that stays in L2.
const PANEL: usize = 64;

impl Compute {
    /// out = x · Wᵀ + bias for each part, all in one parallel region (query, key and value; gate and up).
    ///
    /// `x` is `[m, k]`; the shapes of a part are in [`LinearPart`]. Accumulates in `f32`, whatever the weights' type;
    /// the error of one result is at most (k/8 + 16) · 2⁻²⁴ · (Σᵢ |W·x| + |bias|) for m ≤ 8, (k + 16) · 2⁻²⁴ times that
    /// sum for more.
    ///
    /// For quantised weights each row of x is first rounded to 16-bit integers, ties to even, with the scale
    /// max |x| / 32512: 2⁻¹⁶ · max |x| · Σᵢ |W| more. Where they have a scale per group, each weight counts in the error as
    /// three times the largest that its group's codes can be. A row of x that holds NaN or infinity gives NaN. For int8 weights
    /// the sums are then exact integers, and every tier gives the same result.
    ///
    /// For more than 8 activations [`Isa::Amx`](crate::Isa::Amx) rounds x to bf16 if the weights are, and both if they
    /// are quantised in groups (subnormal values to 0): 2⁻⁸ · Σᵢ |W·x| more for each.
    /// [`Isa::Avx512Bf16`](crate::Isa::Avx512Bf16) rounds x to bf16 if the weights are, for more than 16.
    ///
    /// A bitmap gives the results of the same weights stored densely: those of int8 bit for bit, others within the
    /// error above, but [`Isa::Amx`](crate::Isa::Amx) may take subnormal values of a bf16 bitmap for 0 and make
    /// infinite ones NaN, for any number of activations.
    ///
    /// # Panics
    /// If `x.len()` is not `m * k`, or a bias or result does not fit its weight.
    pub fn linear(&self, x: &[f32], m: usize, parts: &mut [LinearPart]) {
        for part in parts.iter() {
            let (n, k) = (part.weights.rows(), part.weights.cols());
            assert_eq!(x.len(), m * k, "linear: x.len() is not m * k = {m} * {k}");
            assert_eq!(part.out.len(), m * n, "linear: out.len() is not m * n = {m} * {n}");
            if let Some(bias) = part.bias {
                assert_eq!(bias.len(), n, "linear: bias.len() is not n = {n}");
            }
        }
        if m == 0 {
            return;
        }
        let int16 = parts.iter().any(|p| p.weights.dtype().is_quantized()).then(|| self.quantize_activations(x, m));
        let x = Activations { x, int16: int16.as_ref(), m, exact: m <= FEW };
        if m > FEW {
            self.multiply_blocked(x, parts);
        }
        self.multiply_directly(x, parts);
    }

    /// The blocked product, where it takes less time than reading the weights as they are.
    fn blocked(&self, w: Stored, m: usize) -> Option<GemmFn> {
        self.kernels.gemm[w.dtype() as usize].filter(|_| m > self.few(w) && w.cols() > 0)
    }

    /// The parts with a blocked product: a region for each element type.
    fn multiply_blocked(&self, activations: Activations, parts: &mut [LinearPart]) {
        let Activations { x, int16, m, .. } = activations;
        for dtype in DType::ALL {
            let parts: Vec<Part> = parts
                .iter_mut()
                .filter(|p| p.weights.dtype() == dtype && self.blocked(p.weights, m).is_some())
                .map(|p| Part { weights: p.weights, bias: p.bias, out: SharedMut::new(p.out) })
                .collect();
            if let (Some(gemm), Some(part)) = (self.kernels.gemm[dtype as usize], parts.first()) {
                let (k, expand) = (part.weights.cols(), self.expander());
                let decode = self.kernels.decode_codes[dtype as usize];
                let args = Gemm {
                    x,
                    int16,
                    m,
                    k,
                    layout: Layout::OutIn,
                    ids: None,
                    parts: &parts,
                    expand,
                    decode,
                    pack: None,
                };
                // SAFETY: the table holds only kernels that this CPU can run; the shapes were checked, and the results
                // are borrowed mutably.
                unsafe { gemm(&self.workers, &args) };
            }
        }
    }

    /// The other parts, in one region.
    fn multiply_directly(&self, x: Activations, parts: &mut [LinearPart]) {
        let direct = |w: Stored| self.blocked(w, x.m).is_none();
        let rows = |p: &LinearPart| if direct(p.weights) { p.weights.rows() } else { 0 };
        let (all, work) = (parts.iter().map(rows).sum(), parts.iter().map(|p| rows(p) * x.x.len()).sum());
        let share = usize::div_ceil(all, self.workers.tasks(all, work)).next_multiple_of(16).max(16);
        let block = |w: Stored| match w {
            Stored::Dense(_) if x.m > self.few(w) => share.min(PANEL),
            _ => share,
        };
        if let [part] = parts {
            // The usual case needs no list of what each task writes.
            let out = SharedMut::new(part.out);
            let (weights, bias, block) = (part.weights, part.bias, block(part.weights));
            self.workers.parallel(all.div_ceil(block), work, &|task| {
                let range = task * block..all.min((task + 1) * block);
                linear_block(self, x, weights, bias, out, range);
            });
            return;
        }
        let blocks = parts.iter().map(|p| rows(p).div_ceil(block(p.weights))).sum();
        let parts = SharedMut::new(parts);
        self.workers.parallel(blocks, work, &|task| {
            let mut task = task;
            for p in 0.. {
                let part = parts.pointer(p);
                // SAFETY: tasks are numbered below the sum of all parts' blocks, so part p exists; these fields are
                // only read.
                let (weights, bias) = unsafe { ((*part).weights, (*part).bias) };
                if !direct(weights) {
                    continue;
                }
                let (n, block) = (weights.rows(), block(weights));
                let here = n.div_ceil(block);
                if task < here {
                    // SAFETY: `parts` is borrowed mutably for this call, so nobody else uses its results.
                    let out = unsafe { SharedMut::from_raw(&raw mut *(*part).out) };
                    let range = task * block..n.min((task + 1) * block);
                    linear_block(self, x, weights, bias, out, range);
                    return;
                }
                task -= here;
            }
        });
    }
}

/// Rows `range` of one weight, for all activations.
fn linear_block(
    compute: &Compute,
    x: Activations,
    weights: Stored,
    bias: Option<&[f32]>,
    out: SharedMut<f32>,
    range: Range<usize>,
) {
    let to = Products { out: out.pointer(range.start), stride: weights.rows() };
    // SAFETY: x and out have the shapes that were checked, and each task writes only the columns of its rows.
    unsafe { compute.products(weights, RowSet::Range(range.clone()), x, to) };
    if let Some(bias) = bias {
        for t in 0..x.m {
            // SAFETY: only this task uses these columns of row t.
            let row = unsafe { out.part(t * to.stride + range.start..t * to.stride + range.end) };
            for (out, &b) in row.iter_mut().zip(&bias[range.clone()]) {
                *out += b;
            }
        }
    }
}
