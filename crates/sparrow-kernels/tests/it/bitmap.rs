//! Weights as bitmaps: packing and unpacking, the checks of arrays that come from outside, and every operation against
//! the same weights stored densely, on every tier.

use crate::support::*;
use proptest::prelude::*;
use sparrow_kernels::*;

const TYPES: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I4G32, DType::I4G128];
const DENSITIES: [f64; 5] = [0.0, 0.1, 0.5, 0.9, 1.0];

/// Bytes that start at an odd address.
struct Odd {
    bytes: Vec<u8>,
    len: usize,
}

impl Odd {
    fn new(bytes: &[u8]) -> Self {
        let mut all = vec![0xff; bytes.len() + 2];
        let skip = 1 - all.as_ptr() as usize % 2;
        all[skip..][..bytes.len()].copy_from_slice(bytes);
        Self { bytes: all, len: bytes.len() }
    }

    fn get(&self) -> &[u8] {
        &self.bytes[1 - self.bytes.as_ptr() as usize % 2..][..self.len]
    }
}

/// The same weights in both forms, all arrays at odd addresses.
struct Pair {
    dense: Sample,
    offsets: Vec<u64>,
    mask: Odd,
    values: Odd,
    scales: Odd,
}

impl Pair {
    /// Random weights of which about `density` are not zero; every fifth row is empty.
    fn random(dtype: DType, rows: usize, cols: usize, density: f64, random: &mut Random) -> Self {
        let keep = |random: &mut Random| f64::from(random.value().abs()) <= density && density > 0.0;
        let values: Vec<f32> = (0..rows * cols)
            .map(|i| if keep(random) && (density == 1.0 || i / cols % 5 != 3) { random.value() } else { 0.0 })
            .collect();
        let dense = Sample::new(dtype, rows, cols, &values);
        let packed = pack(&Compute::new(Some(1)), dense.matrix());
        let [mask, values, scales] = [&packed.mask, &packed.values, &packed.scales].map(|bytes| Odd::new(bytes));
        Self { dense, offsets: packed.offsets, mask, values, scales }
    }

    fn bitmap(&self) -> Bitmap<'_> {
        let Sample { dtype, rows, cols, .. } = self.dense;
        let [mask, values, scales] = [&self.mask, &self.values, &self.scales].map(Odd::get);
        Bitmap::new(BitmapParts { dtype, rows, cols, mask, offsets: &self.offsets, values, scales }).unwrap()
    }

    /// Both forms.
    fn both(&self) -> [Stored<'_>; 2] {
        [self.bitmap().into(), self.dense.matrix().into()]
    }

    /// Σᵢ W\[row, i\] · x\[i\].
    fn dot(&self, row: usize, x: &[f32]) -> f64 {
        x.iter().enumerate().map(|(i, &x)| self.dense.at(row, i) * f64::from(x)).sum()
    }

    /// Σᵢ |W\[row, i\] · x\[i\]|.
    fn size(&self, row: usize, x: &[f32]) -> f64 {
        x.iter().enumerate().map(|(i, &x)| (self.dense.at(row, i) * f64::from(x)).abs()).sum()
    }
}

fn linear(compute: &Compute, x: &[f32], m: usize, weights: &[Stored], bias: &[f32]) -> Vec<Vec<f32>> {
    let mut outs: Vec<Vec<f32>> = weights.iter().map(|w| vec![f32::NAN; m * w.rows()]).collect();
    let mut parts: Vec<LinearPart> = (weights.iter().zip(&mut outs))
        .map(|(&weights, out)| LinearPart { weights, bias: Some(&bias[..weights.rows()]), out })
        .collect();
    compute.linear(x, m, &mut parts);
    outs
}

fn check_linear(compute: &Compute, w: &Pair, m: usize, random: &mut Random) {
    let Sample { dtype, rows: n, cols: k, .. } = w.dense;
    let (x, bias) = (random.values(m * k), random.values(n));
    let [bitmap, dense] = w.both();
    let [got] = &linear(compute, &x, m, &[bitmap], &bias)[..] else { unreachable!() };
    let [want] = &linear(compute, &x, m, &[dense], &bias)[..] else { unreachable!() };
    let context = |t: usize, j: usize| format!("{dtype} m={m} [{n}, {k}] at [{t}, {j}] {}", describe(compute));
    let steps = if m > 8 { k as f64 } else { k as f64 / 8.0 };
    for t in 0..m {
        for j in 0..n {
            let (got, want) = (got[t * n + j], want[t * n + j]);
            if dtype == DType::I8 {
                assert_eq!(got, want, "{}", context(t, j));
                continue;
            }
            let row = &x[t * k..(t + 1) * k];
            let tolerance = (steps + 16.0) * U * (w.size(j, row) + f64::from(bias[j]).abs());
            if m <= 8 && !dtype.is_quantized() {
                assert_close(got, w.dot(j, row) + f64::from(bias[j]), tolerance, &|| context(t, j));
            }
            // Each form is within its tolerance of the exact sum, of rounded activations where both round them.
            assert_close(got, want.into(), 2.0 * tolerance, &|| context(t, j));
        }
    }
}

#[test]
fn products_are_those_of_dense_weights() {
    let mut random = Random(1);
    for dtype in TYPES {
        let mut pairs = Vec::new();
        for cols in 0..=70 {
            pairs.push(Pair::random(dtype, 17, cols, DENSITIES[cols % 5], &mut random));
        }
        for rows in [0, 1, 2, 3, 31, 33] {
            for density in DENSITIES {
                pairs.push(Pair::random(dtype, rows, 100, density, &mut random));
            }
        }
        pairs.push(Pair::random(dtype, 131, 1, 0.5, &mut random));
        // Beyond a task, a block and a line of the mask.
        pairs.push(Pair::random(dtype, 310, 1100, 0.5, &mut random));
        pairs.push(Pair::random(dtype, 70, 1030, 0.4, &mut random));
        for compute in tiers_to_test() {
            for (i, pair) in pairs.iter().enumerate() {
                check_linear(&compute, pair, 1 + i % 9, &mut random);
                check_linear(&compute, pair, [1, 16, 17, 32, 33, 97][i % 6], &mut random);
            }
            for m in (0..=9).chain([15, 16, 17, 32, 33, 40, 97]) {
                check_linear(&compute, &pairs[pairs.len() - 1], m, &mut random);
            }
        }
    }
}

#[test]
fn forms_and_types_mix_in_one_call() {
    let mut random = Random(2);
    let pairs = [DType::BF16, DType::BF16, DType::I8, DType::F32, DType::I4G32]
        .map(|dtype| Pair::random(dtype, 21, 67, 0.5, &mut random));
    let bias = random.values(21);
    for compute in tiers_to_test() {
        for m in [1, 3, 12] {
            let x = random.values(m * 67);
            let weights: Vec<Stored> = pairs.iter().enumerate().map(|(i, pair)| pair.both()[i % 2]).collect();
            for (together, weights) in linear(&compute, &x, m, &weights, &bias).iter().zip(weights) {
                let alone = &linear(&compute, &x, m, &[weights], &bias)[0];
                assert_eq!(together, alone, "{} m={m} {}", weights.dtype(), describe(&compute));
            }
        }
    }
}

#[test]
fn activations_that_are_not_finite_are_alone_with_it() {
    let mut random = Random(8);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let w = Pair::random(dtype, 33, 100, 0.5, &mut random);
        for compute in tiers_to_test() {
            for m in [3, 5, 8, 16, 20] {
                let mut x = random.values(m * 100);
                (x[100], x[250]) = (f32::INFINITY, f32::NAN);
                let [bitmap, dense] = w.both().map(|w| linear(&compute, &x, m, &[w], &[0.0; 33]).concat());
                for (i, (&got, &want)) in bitmap.iter().zip(&dense).enumerate() {
                    let context = || format!("{dtype} m={m} at {i} {} {got} {want}", describe(&compute));
                    assert_eq!(got.is_finite(), want.is_finite(), "{}", context());
                    assert_eq!(got.is_finite(), !(33..99).contains(&i), "{}", context());
                }
            }
        }
    }
}

#[test]
fn input_major_products_are_those_of_dense_weights() {
    let mut random = Random(3);
    for dtype in TYPES {
        for (k, n) in [(1, 1), (3, 70), (70, 33), (97, 31), (300, 130), (17, 259), (530, 300)] {
            let w = Pair::random(dtype, k, n, 0.5, &mut random);
            let ids: Vec<u32> = (0..k as u32).filter(|_| random.below(3) > 0).collect();
            for compute in tiers_to_test() {
                for m in [1, 2, 3, 5, 8, 9, 16, 20] {
                    let (x, bias) = (random.values(m * k), random.values(n));
                    for inputs in [None, Some(&ids[..])] {
                        let [got, want] = w.both().map(|w| {
                            let mut out = vec![f32::NAN; m * n];
                            compute.linear_in_out(
                                &x,
                                m,
                                inputs,
                                &mut [LinearPart { weights: w, bias: Some(&bias), out: &mut out }],
                            );
                            out
                        });
                        for (i, (got, want)) in got.into_iter().zip(want).enumerate() {
                            let (t, j) = (i / n, i % n);
                            let context = || format!("{dtype} m={m} [{k}, {n}] at [{t}, {j}] {}", describe(&compute));
                            let count = inputs.map_or(k, <[u32]>::len);
                            let products = (0..count).map(|i| {
                                let r = inputs.map_or(i, |ids| ids[i] as usize);
                                w.dense.at(r, j) * f64::from(x[t * k + r])
                            });
                            let bias = f64::from(bias[j]);
                            let size = products.clone().map(f64::abs).sum::<f64>() + bias.abs();
                            let tolerance = (count as f64 + 2.0) * U * size;
                            if m <= 8 && !dtype.is_quantized() {
                                assert_close(got, products.sum::<f64>() + bias, tolerance, &context);
                            }
                            // Few rows are added in f32, for which a tier with AMX rounds what multiplies dense
                            // weights.
                            let mut rounded = if m > 8 && count < 96 { 2f64.powi(-8) * size } else { 0.0 };
                            // AVX-512 rounds what multiplies dense rows of int8 to 16 bits, not what multiplies a bitmap's.
                            if m <= 8 && dtype == DType::I8 && compute.isa() >= Isa::Avx512 {
                                let largest = (0..k).map(|r| f64::from(x[t * k + r].abs()) * w.dense.largest_size(r));
                                rounded += count as f64 * largest.fold(0.0, f64::max) / 65024.0;
                            }
                            assert_close(got, want.into(), 2.0 * tolerance + rounded, &context);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn active_neurons_are_those_of_dense_weights() {
    let mut random = Random(4);
    for dtype in TYPES {
        let (neurons, hidden) = (75, 130);
        let parts = [(); 3].map(|()| Pair::random(dtype, neurons, hidden, 0.5, &mut random));
        let ids: Vec<u32> = (0..neurons as u32).filter(|_| random.below(2) > 0).collect();
        for compute in tiers_to_test() {
            for m in [1, 3, 7, 18] {
                let x = random.values(m * hidden);
                let masks: Vec<u64> = (0..m * mask_words(neurons)).map(|_| random.next()).collect();
                let mlp_of = |forms: [usize; 3]| {
                    let [gate, up, down] = [0, 1, 2].map(|part| parts[part].both()[forms[part]]);
                    let mlp = SparseMlp {
                        gate: Some(gate),
                        up,
                        down,
                        gate_bias: None,
                        up_bias: None,
                        down_bias: None,
                        left_out: None,
                        activation: Activation::Relu,
                        pooled: None,
                    };
                    let mut out = vec![f32::NAN; m * hidden];
                    compute.sparse_mlp(
                        &mlp,
                        &SparseMlpInputs { x: &x, rows: m, neurons: &ids, masks: Some(&masks), gate: None },
                        &mut out,
                    );
                    // The same neurons as pooled rows: here all rows are at hand, in their places.
                    let pooled = Some(Pooled { neurons, rows: &ids });
                    let mut again = vec![f32::NAN; m * hidden];
                    compute.sparse_mlp(
                        &SparseMlp { pooled, ..mlp },
                        &SparseMlpInputs { x: &x, rows: m, neurons: &ids, masks: Some(&masks), gate: None },
                        &mut again,
                    );
                    assert_eq!(out, again, "pooled rows");
                    out
                };
                let want = mlp_of([1; 3]);
                for forms in [[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]] {
                    for (got, want) in mlp_of(forms).into_iter().zip(&want) {
                        // Sums of up to 75 products of two sums of 130 products of at most 1.
                        let tolerance = 8.0 * (130.0 / 8.0 + 75.0 + 80.0) * U * 75.0 * 130.0;
                        assert_close(got, (*want).into(), tolerance, &|| {
                            format!("{dtype} m={m} {forms:?} {}", describe(&compute))
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn unpacking_restores_rows_of_every_width() {
    let mut random = Random(5);
    for compute in tiers_to_test() {
        for dtype in TYPES {
            for cols in (0..=70).chain([127, 128, 129, 1000]) {
                for density in DENSITIES {
                    let w = Pair::random(dtype, 7, cols, density, &mut random);
                    let mut out = vec![0xee; 7 * dtype.row_bytes(cols)];
                    unpack(&compute, w.bitmap(), &mut out);
                    assert!(out == w.dense.matrix().bytes(), "{dtype} {cols} {density} {}", describe(&compute));
                }
            }
        }
    }
}

#[test]
fn sizes_and_ranges() {
    let mut random = Random(6);
    for dtype in TYPES {
        let w = Pair::random(dtype, 40, 256, 0.5, &mut random);
        let bitmap = w.bitmap();
        let arrays = w.mask.len + 8 * w.offsets.len() + w.values.len + w.scales.len;
        assert_eq!((bitmap.bytes(), Stored::from(bitmap).size()), (arrays, arrays));
        assert!((0.3..0.5).contains(&bitmap.density()), "{} {}", dtype, bitmap.density());
        let bytes: usize = [0..7, 7..7, 7..40].map(|rows| bitmap.row_range(rows).bytes() - 8).iter().sum();
        assert_eq!(bytes, arrays - 8, "rows share no bytes but the last offset");
        let mut part = vec![0; 5 * dtype.row_bytes(256)];
        unpack(&Compute::new(Some(1)), bitmap.row_range(9..14), &mut part);
        assert!(part == w.dense.matrix().row_range(9..14).bytes());
    }
}

/// A valid bitmap of 3 rows of 11 columns, to be broken.
fn packed(dtype: DType) -> PackedBitmap {
    let mut random = Random(7);
    pack(&Compute::new(Some(1)), Sample::random(dtype, 3, 11, &mut random).matrix())
}

#[test]
fn corrupt_arrays_are_refused() {
    for dtype in TYPES {
        let broken = |change: &dyn Fn(&mut PackedBitmap)| {
            let mut packed = packed(dtype);
            change(&mut packed);
            packed.parts().check().err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert_eq!(broken(&|_| ()), "");
        for (says, change) in [
            ("mask has length 5, expected 6", (|p| _ = p.mask.pop()) as fn(&mut PackedBitmap)),
            ("offsets has length 5, expected 4", |p| p.offsets.push(1)),
            ("offset 0 of the bitmap is 1", |p| p.offsets[0] = 1),
            ("offset 2 of the bitmap is", |p| p.offsets[2] += 1),
            ("row 1 of the bitmap's mask has bits past the last column", |p| p.mask[3] |= 0x80),
            ("values has length", |p| _ = p.values.pop()),
            ("offset 1 of the bitmap is", |p| p.mask[0] = !p.mask[0] & 0xf),
            ("too large", |p| p.offsets[3] = u64::MAX),
            ("too large", |p| (p.rows, p.cols) = (usize::MAX / 2, 16)),
            ("int4-zero has no bitmap form", |p| p.dtype = DType::I4G32Z),
        ] {
            // The largest offset is too large only where elements have several bytes.
            if says == "too large" && matches!(dtype, DType::I8 | DType::I4G32 | DType::I4G128) {
                assert_ne!(broken(&change), "", "{dtype}");
                continue;
            }
            assert!(broken(&change).contains(says), "{dtype}: {:?} does not say {says:?}", broken(&change));
        }
        if dtype.is_quantized() {
            assert!(broken(&|p| _ = p.scales.pop()).contains("scales has length"), "{dtype}");
        }
    }
    let int8 = PackedBitmap {
        rows: 0,
        cols: (1 << 17) + 1,
        offsets: vec![0],
        mask: vec![],
        values: vec![],
        scales: vec![],
        dtype: DType::I8,
    };
    assert!(int8.parts().check().unwrap_err().to_string().contains("too large"));
}

/// Stored bytes of `[rows, cols]`: any bits of floats, with many zeros; of quantised types what `encode` makes of
/// numbers.
fn stored_bytes(dtype: DType, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed | 1);
    if dtype.is_quantized() {
        let values: Vec<f32> = (0..rows * cols).map(|_| random.value() * random.below(2) as f32).collect();
        return Sample::new(dtype, rows, cols, &values).matrix().bytes().to_vec();
    }
    let size = dtype.row_bytes(1);
    let element = |random: &mut Random| match random.below(4) {
        0 => random.next().to_le_bytes(),
        // -0.0.
        1 => (0x80u64 << (8 * (size - 1))).to_le_bytes(),
        _ => [0; 8],
    };
    (0..rows * cols).flat_map(|_| element(&mut random)[..size].to_vec()).collect()
}

proptest! {
    #[test]
    fn unpack_undoes_pack(which in 0usize..6, rows in 0usize..6, cols in 0usize..300, seed: u64) {
        let dtype = TYPES[which];
        let bytes = stored_bytes(dtype, rows, cols, seed);
        for compute in tiers_to_test() {
            let packed = pack(&compute, Matrix::new(dtype, rows, cols, &bytes));
            let mut back = vec![0x55; bytes.len()];
            unpack(&compute, packed.bitmap(), &mut back);
            prop_assert!(bytes == back, "{} [{}, {}] {}", dtype, rows, cols, describe(&compute));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(
        which in 0..DType::ALL.len(),
        (rows, cols) in prop_oneof![4 => (0usize..4, 0usize..40), 1 => (any::<usize>(), any::<usize>())],
        mask in proptest::collection::vec(any::<u8>(), 0..24),
        mut offsets in proptest::collection::vec(0u64..60, 0..6),
        honest: bool,
    ) {
        let dtype = DType::ALL[which];
        if honest {
            // Offsets that fit the mask, so that some cases pass.
            offsets = vec![0];
            for row in mask.chunks(cols.div_ceil(8).max(1)).take(rows) {
                let stored: u32 = row.iter().map(|byte| byte.count_ones()).sum();
                offsets.push(offsets[offsets.len() - 1] + u64::from(stored));
            }
        }
        let mask = &mask[..mask.len().min(rows.saturating_mul(cols.div_ceil(8)))];
        let size = if dtype.is_quantized() { 1 } else { dtype.row_bytes(1) };
        let values = vec![0x11; offsets.last().map_or(0, |&n| n as usize * size)];
        let scales = vec![0; rows.min(4) * if dtype == DType::I8 { 4 } else { 0 }];
        let parts = BitmapParts { dtype, rows, cols, mask, offsets: &offsets, values: &values, scales: &scales };
        if let Ok(bitmap) = Bitmap::new(parts) {
            let mut out = vec![0; rows * dtype.row_bytes(cols)];
            unpack(&Compute::new(Some(1)), bitmap, &mut out);
        }
    }
}
