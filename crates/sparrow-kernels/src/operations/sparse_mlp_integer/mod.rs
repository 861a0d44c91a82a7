//! The active neurons of an MLP in integers, exact or refused: for people who simulate fixed-point accelerators.

mod element;

use std::fmt;
use std::sync::{Mutex, PoisonError};

use super::check::check_ids;
use super::select::mask_words;
use crate::compute::Compute;
use crate::parallel::SharedMut;
pub use element::Integer;
use element::{AddProduct, Sum};

/// An MLP of integers, gated or not, stored neuron by neuron: I neurons, hidden size H.
#[derive(Clone, Copy, Debug)]
pub struct IntegerMlp<'a, T> {
    /// I.
    pub neurons: usize,
    /// H.
    pub hidden: usize,
    /// `[I, H]`; `None` for an ungated MLP, h = a(up · x).
    pub gate: Option<&'a [T]>,
    /// `[I, H]`.
    pub up: &'a [T],
    /// `[I, H]`: row i is column i of the down projection.
    pub down: &'a [T],
    /// Applied to the gate, or to up without a gate.
    pub activation: IntegerActivation,
    /// f: every number stands for its value · 2⁻ᶠ (Q format), so each product sum is divided by 2ᶠ, to the nearest
    /// integer, ties to even. 0 for plain integers.
    pub fraction_bits: u32,
}

/// The activations that integers can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IntegerActivation {
    /// max(x, 0).
    Relu,
    /// max(x, 0)², divided by 2ᶠ like every product.
    ReluSquared,
    /// x.
    Identity,
}

/// The step of an MLP whose result did not fit its element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IntegerStage {
    /// gateᵢ · x
    Gate,
    /// upᵢ · x
    Up,
    /// a(·), which can only overflow where it squares.
    Activation,
    /// a(gate) · up
    Product,
    /// Σᵢ hᵢ · downᵢ
    Down,
}

/// A value of [`Compute::sparse_mlp_integer`] that its element type cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IntegerOverflow {
    /// The row of x.
    pub row: usize,
    /// Which value of the MLP.
    pub stage: IntegerStage,
    /// The neuron, or for [`IntegerStage::Down`] the column of the result.
    pub index: usize,
    /// The element type: `i32` or `i64`.
    pub element: &'static str,
}

impl fmt::Display for IntegerOverflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Self { row, stage, index, element } = self;
        let what = match stage {
            IntegerStage::Gate => format!("the gate of neuron {index}"),
            IntegerStage::Up => format!("up of neuron {index}"),
            IntegerStage::Activation => format!("the activation of neuron {index}"),
            IntegerStage::Product => format!("gate times up of neuron {index}"),
            IntegerStage::Down => format!("column {index} of the result"),
        };
        write!(f, "{what} in row {row} does not fit in {element}: scale the values down, or give more fraction bits")
    }
}

impl std::error::Error for IntegerOverflow {}

/// Columns of the result whose sums stay in L1.
const COLUMNS: usize = 512;

impl Compute {
    /// out\[r, :\] = Σᵢ h\[r, i\] · down\[i, :\], with h\[r, i\] = a(gateᵢ·x\[r\]) · (upᵢ·x\[r\]) (without a gate:
    /// a(upᵢ·x\[r\])) where bit i of mask row r is set, and 0 elsewhere; for `i32` or `i64`, each sum of products
    /// divided by 2^`fraction_bits`.
    ///
    /// `x` and `out` are `[m, H]`, `out` overwritten; `ids` is the ascending union of the rows' active neurons, and
    /// only their rows are read; `masks` is `[m, ceil(I/64)]`, and `None` makes every id count for every row.
    ///
    /// Exact: a sum of products is formed without any rounding or wrapping, whatever its length and values, then
    /// divided by 2^`fraction_bits` once, to the nearest integer, ties to even. The result depends neither on the tier
    /// nor on the number of threads.
    ///
    /// # Errors
    /// If a gate, up, activation, product or result, after that division, does not fit in the element type: the first
    /// one in the order of the stages from gate to product neuron by neuron within a row, rows in order, then the
    /// results. Only what is active in a row counts. `out` then holds no particular values.
    ///
    /// # Panics
    /// If a length does not match these shapes, an id is not below I, or `fraction_bits` is not below the element's
    /// bits.
    pub fn sparse_mlp_integer<T: Integer>(
        &self,
        mlp: &IntegerMlp<T>,
        x: &[T],
        m: usize,
        ids: &[u32],
        masks: Option<&[u64]>,
        out: &mut [T],
    ) -> Result<(), IntegerOverflow> {
        check(mlp, x, m, ids, masks, out);
        let mut h = vec![T::default(); ids.len() * m];
        let first = FirstOverflow::default();
        let work = m * ids.len() * mlp.hidden;
        let block = ids.len().div_ceil(self.workers.tasks(ids.len(), 2 * work)).max(1);
        // Both regions read whole neurons or long stretches of them, so neither needs partial sums.
        let safe: Vec<bool> = x.chunks_exact(mlp.hidden.max(1)).map(T::fast_sum_is_exact).collect();
        let shared = SharedMut::new(&mut h);
        self.workers.parallel(ids.len().div_ceil(block), 2 * work, &|task| {
            for i in task * block..ids.len().min((task + 1) * block) {
                // SAFETY: every id belongs to one task.
                let h = unsafe { shared.part(i * m..(i + 1) * m) };
                for (row, h) in h.iter_mut().enumerate().filter(|&(row, _)| is_active(masks, mlp, row, ids[i])) {
                    let x = &x[row * mlp.hidden..][..mlp.hidden];
                    match self.neuron(mlp, x, safe.get(row).is_none_or(|&safe| safe), ids[i] as usize) {
                        Ok(value) => *h = value,
                        Err(stage) => first.add::<T>(row, stage, ids[i] as usize),
                    }
                }
            }
        });
        first.result()?;

        let safe: Vec<bool> = (0..m).map(|row| T::fast_sum_is_exact(h.iter().skip(row).step_by(m))).collect();
        let columns = mlp.hidden.div_ceil(self.workers.tasks(mlp.hidden, work)).next_multiple_of(64).min(COLUMNS);
        let shared = SharedMut::new(out);
        self.workers.parallel(mlp.hidden.div_ceil(columns.max(1)), work, &|task| {
            let range = task * columns..mlp.hidden.min((task + 1) * columns);
            let mut sums = vec![T::Fast::default(); m * range.len()];
            for (&id, h) in ids.iter().zip(h.chunks_exact(m.max(1))) {
                let down = &mlp.down[id as usize * mlp.hidden..][range.clone()];
                for (sums, &h) in sums.chunks_exact_mut(range.len()).zip(h).filter(|&(_, &h)| h != T::default()) {
                    T::add_scaled(self.kernels, h, down, sums);
                }
            }
            for row in 0..m {
                // SAFETY: only this task writes these columns.
                let out = unsafe { shared.part(row * mlp.hidden + range.start..row * mlp.hidden + range.end) };
                for (c, out) in out.iter_mut().enumerate() {
                    let value = if safe[row] {
                        sums[row * range.len() + c].scaled(mlp.fraction_bits)
                    } else {
                        let mut sum = T::Exact::default();
                        for (&id, h) in ids.iter().zip(h.chunks_exact(m)) {
                            sum.add_product(h[row], mlp.down[id as usize * mlp.hidden + range.start + c]);
                        }
                        sum.scaled(mlp.fraction_bits)
                    };
                    match value {
                        Some(value) => *out = value,
                        None => first.add::<T>(row, IntegerStage::Down, range.start + c),
                    }
                }
            }
        });
        first.result()
    }

    /// h of one neuron for one row; `safe` says that the fast sum of products with x is exact.
    fn neuron<T: Integer>(&self, mlp: &IntegerMlp<T>, x: &[T], safe: bool, id: usize) -> Result<T, IntegerStage> {
        let bits = mlp.fraction_bits;
        let project = |weights: &[T], stage| {
            let weights = &weights[id * mlp.hidden..][..mlp.hidden];
            let value = if safe {
                T::dot(self.kernels, weights, x).scaled(bits)
            } else {
                let mut sum = T::Exact::default();
                weights.iter().zip(x).for_each(|(&w, &x)| sum.add_product(w, x));
                sum.scaled(bits)
            };
            value.ok_or(stage)
        };
        let product = |a: T, b: T, stage| {
            let mut sum = T::Exact::default();
            sum.add_product(a, b);
            sum.scaled(bits).ok_or(stage)
        };
        let activate = |value: T| match mlp.activation {
            IntegerActivation::Relu => Ok(value.max(T::default())),
            IntegerActivation::ReluSquared => {
                let positive = value.max(T::default());
                product(positive, positive, IntegerStage::Activation)
            }
            IntegerActivation::Identity => Ok(value),
        };
        match mlp.gate {
            Some(gate) => {
                let gate = project(gate, IntegerStage::Gate)?;
                let up = project(mlp.up, IntegerStage::Up)?;
                product(activate(gate)?, up, IntegerStage::Product)
            }
            None => activate(project(mlp.up, IntegerStage::Up)?),
        }
    }
}

/// The overflow to report, whichever task found which one when.
#[derive(Default)]
struct FirstOverflow(Mutex<Option<(usize, usize, IntegerOverflow)>>);

impl FirstOverflow {
    fn add<T: Integer>(&self, row: usize, stage: IntegerStage, index: usize) {
        let found = (row, index, IntegerOverflow { row, stage, index, element: T::NAME });
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *first = Some(first.map_or(found, |first| first.min(found)));
    }

    fn result(&self) -> Result<(), IntegerOverflow> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), |(_, _, overflow)| Err(overflow))
    }
}

fn is_active<T>(masks: Option<&[u64]>, mlp: &IntegerMlp<T>, row: usize, id: u32) -> bool {
    masks.is_none_or(|masks| masks[row * mask_words(mlp.neurons) + id as usize / 64] >> (id % 64) & 1 == 1)
}

fn check<T: Integer>(mlp: &IntegerMlp<T>, x: &[T], m: usize, ids: &[u32], masks: Option<&[u64]>, out: &[T]) {
    let length = |name: &str, got: usize, want: usize| {
        assert_eq!(got, want, "sparse_mlp_integer: {name}.len() is {got}, not {want}");
    };
    let weights = mlp.neurons * mlp.hidden;
    length("gate", mlp.gate.map_or(weights, <[T]>::len), weights);
    length("up", mlp.up.len(), weights);
    length("down", mlp.down.len(), weights);
    length("x", x.len(), m * mlp.hidden);
    length("out", out.len(), m * mlp.hidden);
    if let Some(masks) = masks {
        length("masks", masks.len(), m * mask_words(mlp.neurons));
    }
    let bits = 8 * size_of::<T>() as u32;
    assert!(
        mlp.fraction_bits < bits,
        "sparse_mlp_integer: fraction_bits is {}, {} has {bits} bits",
        mlp.fraction_bits,
        T::NAME
    );
    check_ids("sparse_mlp_integer", "ids", ids, mlp.neurons);
}
