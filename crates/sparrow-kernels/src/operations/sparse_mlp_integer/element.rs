//! The two element types, and sums of products that never wrap.

use std::fmt::Debug;

use crate::table::Kernels;

mod sealed {
    pub trait Sealed {}
    impl Sealed for i32 {}
    impl Sealed for i64 {}
}

/// `i32` or `i64`, an element of [`IntegerMlp`](super::IntegerMlp).
#[allow(private_bounds, private_interfaces)]
pub trait Integer: sealed::Sealed + Arithmetic {}
impl Integer for i32 {}
impl Integer for i64 {}

/// What [`Integer`] needs of its types, out of reach of other crates.
pub(super) trait Arithmetic: Copy + Default + Ord + Debug + Send + Sync + 'static {
    const NAME: &'static str;
    /// Sums of products, as long as [`fast_sum_is_exact`](Self::fast_sum_is_exact).
    type Fast: Sum<Self>;
    /// Sums of any products.
    type Exact: AddProduct<Self>;

    /// Whether no partial sum of products of these values with any others can overflow [`Fast`](Self::Fast).
    fn fast_sum_is_exact<'a>(values: impl IntoIterator<Item = &'a Self>) -> bool;

    /// Σ a·b.
    fn dot(kernels: &Kernels, a: &[Self], b: &[Self]) -> Self::Fast;

    /// sums ← sums + a·b.
    fn add_scaled(kernels: &Kernels, a: Self, b: &[Self], sums: &mut [Self::Fast]);
}

impl Arithmetic for i32 {
    const NAME: &'static str = "i32";
    type Fast = i64;
    type Exact = i128;

    /// |b| ≤ 2³¹, so |Σ a·b| < 2⁶³ if Σ|a| < 2³².
    fn fast_sum_is_exact<'a>(values: impl IntoIterator<Item = &'a i32>) -> bool {
        values.into_iter().map(|v| u128::from(v.unsigned_abs())).sum::<u128>() < 1 << 32
    }

    fn dot(kernels: &Kernels, a: &[i32], b: &[i32]) -> i64 {
        // SAFETY: the table holds only kernels that this CPU can run.
        unsafe { (kernels.dot_i32)(a, b) }
    }

    fn add_scaled(kernels: &Kernels, a: i32, b: &[i32], sums: &mut [i64]) {
        // SAFETY: the table holds only kernels that this CPU can run.
        unsafe { (kernels.axpy_i32)(a, b, sums) }
    }
}

impl Arithmetic for i64 {
    const NAME: &'static str = "i64";
    type Fast = i128;
    type Exact = Split;

    /// |b| ≤ 2⁶³, so |Σ a·b| < 2¹²⁷ if Σ|a| < 2⁶⁴.
    fn fast_sum_is_exact<'a>(values: impl IntoIterator<Item = &'a i64>) -> bool {
        values.into_iter().map(|v| u128::from(v.unsigned_abs())).sum::<u128>() < 1 << 64
    }

    // No vector unit multiplies 64 bits by 64 bits to 128, so every tier has the same loops.
    fn dot(_: &Kernels, a: &[i64], b: &[i64]) -> i128 {
        // Two sums: the carry of one addition need not wait for that of the last.
        let mut sums = [0i128; 2];
        let (a2, a_last) = a.as_chunks::<2>();
        let (b2, b_last) = b.as_chunks::<2>();
        for (a, b) in a2.iter().zip(b2) {
            sums[0] = sums[0].wrapping_add(i128::from(a[0]) * i128::from(b[0]));
            sums[1] = sums[1].wrapping_add(i128::from(a[1]) * i128::from(b[1]));
        }
        for (&a, &b) in a_last.iter().zip(b_last) {
            sums[0] = sums[0].wrapping_add(i128::from(a) * i128::from(b));
        }
        sums[0].wrapping_add(sums[1])
    }

    fn add_scaled(_: &Kernels, a: i64, b: &[i64], sums: &mut [i128]) {
        for (sum, &b) in sums.iter_mut().zip(b) {
            *sum = sum.wrapping_add(i128::from(a) * i128::from(b));
        }
    }
}

/// A sum of products of `T`.
pub(super) trait Sum<T>: Copy + Default + Send + Sync {
    /// The sum divided by 2^`fraction_bits`, to the nearest integer, ties to even; `None` if that is no `T`.
    fn scaled(self, fraction_bits: u32) -> Option<T>;
}

/// A sum that no product can make overflow.
pub(super) trait AddProduct<T>: Sum<T> {
    fn add_product(&mut self, a: T, b: T);
}

impl Sum<i32> for i64 {
    fn scaled(self, fraction_bits: u32) -> Option<i32> {
        divide(i128::from(self), fraction_bits).try_into().ok()
    }
}

impl Sum<i32> for i128 {
    fn scaled(self, fraction_bits: u32) -> Option<i32> {
        divide(self, fraction_bits).try_into().ok()
    }
}

impl AddProduct<i32> for i128 {
    /// Of a slice of 4-byte elements there are fewer than 2⁶² products, each at most 2⁶².
    fn add_product(&mut self, a: i32, b: i32) {
        *self += i128::from(i64::from(a) * i64::from(b));
    }
}

impl Sum<i64> for i128 {
    fn scaled(self, fraction_bits: u32) -> Option<i64> {
        divide(self, fraction_bits).try_into().ok()
    }
}

/// high · 2⁶⁴ + low: the halves of products added up apart, so that neither sum can overflow.
#[derive(Clone, Copy, Default)]
pub(super) struct Split {
    high: i128,
    low: u128,
}

impl AddProduct<i64> for Split {
    fn add_product(&mut self, a: i64, b: i64) {
        let product = i128::from(a) * i128::from(b);
        self.high += product >> 64;
        self.low += u128::from(product as u64);
    }
}

impl Sum<i64> for Split {
    fn scaled(self, fraction_bits: u32) -> Option<i64> {
        // Beyond 127 bits, division by less than 2⁶⁴ leaves more than an i64 holds.
        let high = i64::try_from(self.high + (self.low >> 64) as i128).ok()?;
        let total = i128::from(high) << 64 | (self.low & u128::from(u64::MAX)) as i128;
        Sum::<i64>::scaled(total, fraction_bits)
    }
}

/// value / 2^`bits`, to the nearest integer, ties to even; `bits` below 64.
fn divide(value: i128, bits: u32) -> i128 {
    let quotient = value >> bits;
    let rest = value - (quotient << bits);
    let half = 1i128 << bits >> 1;
    // Without fraction bits half and rest are 0: nothing to round.
    let up = rest > half || rest == half && bits > 0 && quotient & 1 == 1;
    quotient + i128::from(up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_rounds_ties_to_even() {
        let quarters: Vec<i128> = (-8..=8).map(|v| divide(v, 2)).collect();
        assert_eq!(quarters, [-2, -2, -2, -1, -1, -1, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2]);
        assert_eq!(divide(-7, 0), -7);
        assert_eq!(divide(i128::MAX, 63), 1 << 64);
        assert_eq!(divide(i128::MIN, 63), -(1 << 64));
    }

    #[test]
    fn split_sums_pass_128_bits_and_come_back() {
        let mut sum = Split::default();
        for _ in 0..9 {
            sum.add_product(i64::MIN, i64::MIN);
        }
        assert_eq!(sum.scaled(63), None);
        for _ in 0..9 {
            sum.add_product(i64::MIN, i64::MAX);
        }
        sum.add_product(3, -5);
        // 9 · (2¹²⁶ − 2⁶³ · (2⁶³ − 1)) − 15
        assert_eq!(sum.scaled(0), None);
        assert_eq!(sum.scaled(63), Some(9));
        assert_eq!(sum.scaled(62), Some(18));
    }
}
