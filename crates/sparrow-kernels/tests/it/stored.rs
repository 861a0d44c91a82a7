//! Stored matrices as they are laid out: transposed, and with rows that are apart.

use crate::support::*;
use sparrow_kernels::*;

#[test]
fn transposition() {
    let mut random = Random(9);
    for compute in tiers_to_test() {
        for dtype in DType::FLOATS {
            for (rows, cols) in [(0, 3), (3, 0), (1, 1), (2, 65), (64, 64), (65, 130), (300, 257)] {
                let w = Sample::random(dtype, rows, cols, &mut random);
                let mut bytes = vec![0; w.matrix().bytes().len()];
                transpose(&compute, w.matrix(), &mut bytes);
                let mut got = vec![0.0; rows * cols];
                decode(dtype, &bytes, &mut got);
                for r in 0..rows {
                    for c in 0..cols {
                        assert_eq!(f64::from(got[c * rows + r]), w.at(r, c));
                    }
                }
            }
        }
    }
}

#[test]
fn strided_rows_give_the_same_products() {
    let mut random = Random(12);
    for compute in tiers_to_test() {
        for dtype in DType::ALL {
            let (n, k) = (37, 70);
            let stored = Sample::random(dtype, n, k, &mut random);
            let plain = stored.matrix();
            let stride = plain.row_bytes() + 9;
            let mut bytes = vec![0xff; n * stride];
            (0..n).for_each(|i| bytes[i * stride..][..plain.row_bytes()].copy_from_slice(plain.row(i)));
            let strided = Matrix::strided(dtype, n, k, stride, &bytes);
            for range in [0..n, 5..n, 5..21, n..n] {
                let (plain, strided) = (plain.row_range(range.clone()), strided.row_range(range.clone()));
                let n = range.len();
                for m in [1, 3, 9, 33] {
                    let (x, y) = (random.values(m * k), random.values(m * n));
                    let products = |weights: Matrix| {
                        let (mut out, mut back) = (vec![f32::NAN; m * n], vec![f32::NAN; m * k]);
                        compute.linear(&x, m, &mut [LinearPart { weights: weights.into(), bias: None, out: &mut out }]);
                        compute.linear_in_out(
                            &y,
                            m,
                            None,
                            &mut [LinearPart { weights: weights.into(), bias: None, out: &mut back }],
                        );
                        (bits(&out), bits(&back))
                    };
                    assert_eq!(products(plain), products(strided), "{dtype} m={m} {range:?} {}", describe(&compute));
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "Matrix::strided: 40 bytes for [3, 8] of f16 every 16 bytes")]
fn strided_rows_past_the_end_are_refused() {
    Matrix::strided(DType::F16, 3, 8, 16, &[0; 40]);
}
