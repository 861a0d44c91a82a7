//! The integer sparse MLP of every tier against a reference in big integers: values, rounding, and every overflow.

use proptest::prelude::*;
use sparrow_kernels::*;
use std::fmt::Debug;

/// Every tier of this CPU, with one thread and with three.
fn computes() -> Vec<Compute> {
    let pairs = Isa::ALL.into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]);
    pairs.filter_map(|(isa, threads)| Compute::with_isa(isa, Some(threads)).ok()).collect()
}

/// An MLP with its call.
#[derive(Clone, Debug)]
struct Case<T> {
    neurons: usize,
    hidden: usize,
    gate: Option<Vec<T>>,
    up: Vec<T>,
    down: Vec<T>,
    activation: IntegerActivation,
    fraction_bits: u32,
    m: usize,
    x: Vec<T>,
    ids: Vec<u32>,
    masks: Option<Vec<u64>>,
}

/// 256 bits in two's complement, enough for any sum here: (high, low).
#[derive(Clone, Copy, Default)]
struct Big(i128, u128);

impl Big {
    fn add(&mut self, value: i128) {
        let (low, carry) = self.1.overflowing_add(value as u128);
        self.0 += (value >> 127) + i128::from(carry);
        self.1 = low;
    }

    /// Divided by 2^bits (below 64), ties to even; `None` beyond 127 bits.
    fn divided(self, bits: u32) -> Option<i128> {
        if self.0 != (self.1 as i128) >> 127 {
            // Beyond 128 bits the quotient is beyond 64.
            return None;
        }
        let (value, unit) = (self.1 as i128, 1i128 << bits);
        let (quotient, rest) = (value.div_euclid(unit), value.rem_euclid(unit));
        Some(match (2 * rest).cmp(&unit) {
            std::cmp::Ordering::Less => quotient,
            std::cmp::Ordering::Equal => quotient + quotient.rem_euclid(2),
            std::cmp::Ordering::Greater => quotient + 1,
        })
    }
}

trait Element: Integer + TryFrom<i128> + Into<i128> + Debug {}
impl Element for i32 {}
impl Element for i64 {}

impl<T: Copy + Into<i128> + TryFrom<i128>> Case<T> {
    fn narrow(&self, sum: Big) -> Option<i128> {
        sum.divided(self.fraction_bits).filter(|&v| T::try_from(v).is_ok())
    }

    fn dot(&self, a: &[T], b: &[T]) -> Option<i128> {
        let mut sum = Big::default();
        a.iter().zip(b).for_each(|(&a, &b)| sum.add(a.into() * b.into()));
        self.narrow(sum)
    }

    fn product(&self, a: i128, b: i128) -> Option<i128> {
        let mut sum = Big::default();
        sum.add(a * b);
        self.narrow(sum)
    }

    fn activate(&self, v: i128) -> Result<i128, IntegerStage> {
        match self.activation {
            IntegerActivation::Relu => Ok(v.max(0)),
            IntegerActivation::ReluSquared => self.product(v.max(0), v.max(0)).ok_or(IntegerStage::Activation),
            IntegerActivation::Identity => Ok(v),
        }
    }

    fn neuron(&self, row: usize, i: usize) -> Result<i128, IntegerStage> {
        let x = &self.x[row * self.hidden..][..self.hidden];
        let weights = |w: &[T]| w[i * self.hidden..][..self.hidden].to_vec();
        let up = || self.dot(&weights(&self.up), x).ok_or(IntegerStage::Up);
        match &self.gate {
            Some(gate) => {
                let gate = self.dot(&weights(gate), x).ok_or(IntegerStage::Gate)?;
                let up = up()?;
                self.product(self.activate(gate)?, up).ok_or(IntegerStage::Product)
            }
            None => self.activate(up()?),
        }
    }

    /// The masked dense reference, one number after the other.
    fn reference(&self) -> Result<Vec<i128>, (usize, IntegerStage, usize)> {
        let mut h = vec![vec![0; self.neurons]; self.m];
        for row in 0..self.m {
            for &id in &self.ids {
                let i = id as usize;
                let words = mask_words(self.neurons);
                if self.masks.as_ref().is_none_or(|masks| masks[row * words + i / 64] >> (i % 64) & 1 == 1) {
                    h[row][i] = self.neuron(row, i).map_err(|stage| (row, stage, i))?;
                }
            }
        }
        let mut out = Vec::new();
        for row in 0..self.m {
            for c in 0..self.hidden {
                let mut sum = Big::default();
                for i in 0..self.neurons {
                    sum.add(h[row][i] * self.down[i * self.hidden + c].into());
                }
                out.push(self.narrow(sum).ok_or((row, IntegerStage::Down, c))?);
            }
        }
        Ok(out)
    }
}

impl<T: Element> Case<T> {
    fn run(&self, compute: &Compute) -> Result<Vec<i128>, IntegerOverflow> {
        let mlp = IntegerMlp {
            neurons: self.neurons,
            hidden: self.hidden,
            gate: self.gate.as_deref(),
            up: &self.up,
            down: &self.down,
            activation: self.activation,
            fraction_bits: self.fraction_bits,
        };
        let mut out = vec![T::default(); self.m * self.hidden];
        compute.sparse_mlp_integer(&mlp, &self.x, self.m, &self.ids, self.masks.as_deref(), &mut out)?;
        Ok(out.into_iter().map(Into::into).collect())
    }

    #[track_caller]
    fn check(&self) {
        let want = self.reference();
        for compute in computes() {
            let got = self.run(&compute).map_err(|e| (e.row, e.stage, e.index));
            assert_eq!(got, want, "{} on {} threads: {self:?}", compute.isa(), compute.threads());
        }
    }
}

/// Values of every magnitude: a random shift of random bits, and the extremes.
fn value(bits: u32) -> impl Strategy<Value = i64> {
    let limit = if bits == 64 { i64::MAX } else { (1 << (bits - 1)) - 1 };
    prop_oneof![
        16 => (any::<i64>(), 0..bits).prop_map(move |(v, shift)| (v >> (64 - bits)) >> shift),
        4 => -3i64..=3,
        1 => Just(limit),
        1 => Just(-limit - 1),
    ]
}

fn case<T: TryFrom<i64, Error: Debug> + Debug + Clone>(bits: u32) -> impl Strategy<Value = Case<T>> {
    let activation = prop_oneof![
        Just(IntegerActivation::Relu),
        Just(IntegerActivation::ReluSquared),
        Just(IntegerActivation::Identity)
    ];
    // Small magnitudes more often than not, or nearly every case would overflow.
    let magnitude = prop_oneof![Just(4u32), Just(8), Just(bits / 3), Just(bits)];
    (0usize..70, 0usize..70, 0usize..4, any::<bool>(), any::<bool>(), activation, 0..bits, magnitude).prop_flat_map(
        |(neurons, hidden, m, gated, masked, activation, fraction_bits, bits)| {
            let values = move |n: usize| {
                let narrow = |v: Vec<i64>| v.into_iter().map(|v| T::try_from(v).unwrap()).collect::<Vec<T>>();
                proptest::collection::vec(value(bits), n).prop_map(narrow)
            };
            let matrix = || values(neurons * hidden);
            let masks = proptest::collection::vec(proptest::collection::vec(any::<bool>(), neurons), m);
            (matrix(), matrix(), matrix(), values(m * hidden), masks).prop_map(move |(gate, up, down, x, masks)| {
                let words = mask_words(neurons);
                let mut bitmaps = vec![0u64; m * words];
                for (row, mask) in masks.iter().enumerate() {
                    for i in (0..neurons).filter(|&i| mask[i]) {
                        bitmaps[row * words + i / 64] |= 1 << (i % 64);
                    }
                }
                Case {
                    ids: (0..neurons as u32).filter(|&i| masks.iter().any(|mask| mask[i as usize])).collect(),
                    masks: masked.then_some(bitmaps),
                    gate: gated.then_some(gate),
                    // Rounding to nearest matters where something is left of the sum.
                    fraction_bits: fraction_bits % (2 * bits).min(64) / 2,
                    ..Case {
                        neurons,
                        hidden,
                        gate: None,
                        up,
                        down,
                        activation,
                        fraction_bits,
                        m,
                        x,
                        ids: vec![],
                        masks: None,
                    }
                }
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn i32_agrees_with_big_integers(case in case::<i32>(32)) {
        case.check();
    }

    #[test]
    fn i64_agrees_with_big_integers(case in case::<i64>(64)) {
        case.check();
    }
}

/// One row through `neurons` equal neurons, large enough for several tasks.
fn uniform<T: Copy>(neurons: usize, hidden: usize, gate: Option<T>, up: T, down: T, x: T) -> Case<T> {
    let matrix = |value: T| vec![value; neurons * hidden];
    Case {
        neurons,
        hidden,
        gate: gate.map(matrix),
        up: matrix(up),
        down: matrix(down),
        activation: IntegerActivation::Identity,
        fraction_bits: 0,
        m: 1,
        x: vec![x; hidden],
        ids: (0..neurons as u32).collect(),
        masks: None,
    }
}

#[test]
fn large_products_use_every_task() {
    uniform(1000, 1031, Some(3), -2, 5, 7i32).check();
    uniform(1000, 1031, Some(3), -2, 5, 7i64).check();
    let mut case = uniform(300, 1031, None, 1 << 20, -(1 << 20), 1 << 15i32);
    case.fraction_bits = 20;
    case.check();
}

/// The stage that overflows, alone, at one neuron or column of several.
#[test]
fn every_stage_reports_its_overflow() {
    fn at<T: Element>(case: &Case<T>, stage: IntegerStage, index: usize) {
        case.check();
        for compute in computes() {
            let error = case.run(&compute).expect_err("must overflow");
            assert_eq!((error.row, error.stage, error.index), (0, stage, index));
            assert!(error.to_string().contains(error.element), "{error}");
        }
    }
    fn all<T: Element>(max: T, root: T, one: T, zero: T) {
        let ones = |gated: bool| uniform(9, 2, gated.then_some(one), one, zero, one);
        let mut case = ones(true);
        case.gate.as_mut().unwrap()[2 * 5] = max;
        at(&case, IntegerStage::Gate, 5);
        let mut case = ones(true);
        case.up[2 * 7] = max;
        at(&case, IntegerStage::Up, 7);
        let mut case = ones(false);
        case.activation = IntegerActivation::ReluSquared;
        case.up[2 * 3] = root;
        at(&case, IntegerStage::Activation, 3);
        let mut case = ones(true);
        (case.gate.as_mut().unwrap()[2 * 4], case.up[2 * 4]) = (root, root);
        at(&case, IntegerStage::Product, 4);
        let mut case = ones(false);
        case.down[2 * 8 + 1] = max;
        at(&case, IntegerStage::Down, 1);
        // The neuron of another row, and one that is not listed, do not count.
        let mut case = ones(true);
        case.up[2 * 7] = max;
        case.masks = Some(vec![0x1ff & !(1 << 7)]);
        case.check();
        assert!(case.run(&computes()[0]).is_ok());
        case.masks = None;
        case.ids.retain(|&id| id != 7);
        assert!(case.run(&computes()[0]).is_ok());
    }
    all::<i32>(i32::MAX, 50_000, 1, 0);
    all::<i64>(i64::MAX, 4_000_000_000, 1, 0);
}

/// Sums that leave the wider type on the way and come back are no overflow.
#[test]
fn intermediate_sums_may_be_of_any_size() {
    fn all<T: Element>(min: T, max: T, zero: T, bits: u32) {
        // Eight products of min · min, then eight of min · max: the total is −8 · min.
        let mut case = uniform(1, 16, None, min, zero, min);
        case.x[8..].fill(max);
        case.fraction_bits = bits - 1;
        case.check();
        assert!(case.run(&computes()[0]).is_ok());
        // The same for a column of the result, from 16 neurons with h = ±max, up to rounding.
        let mut case = uniform(16, 1, None, min, min, max);
        case.up[8..].fill(max);
        case.fraction_bits = bits - 1;
        case.check();
        assert!(case.run(&computes()[0]).is_ok());
    }
    all::<i32>(i32::MIN, i32::MAX, 0, 32);
    all::<i64>(i64::MIN, i64::MAX, 0, 64);
}

/// Sums that a wrapping accumulator would take for 0.
#[test]
fn a_sum_of_a_multiple_of_the_wider_type_overflows() {
    fn all<T: Element>(min: T, one: T) {
        // 4 · min² is 2⁶⁴, or 2¹²⁸.
        let case = uniform(1, 4, None, min, one, min);
        case.check();
        assert_eq!(case.run(&computes()[0]).unwrap_err().stage, IntegerStage::Up);
        let case = uniform(4, 1, None, min, min, one);
        case.check();
        assert_eq!(case.run(&computes()[0]).unwrap_err().stage, IntegerStage::Down);
    }
    all::<i32>(i32::MIN, 1);
    all::<i64>(i64::MIN, 1);
}

#[test]
#[should_panic(expected = "fraction_bits is 32, i32 has 32 bits")]
fn too_many_fraction_bits_are_refused() {
    let mut case = uniform(1, 1, None, 1, 1, 1i32);
    case.fraction_bits = 32;
    let _ = case.run(&computes()[0]);
}
