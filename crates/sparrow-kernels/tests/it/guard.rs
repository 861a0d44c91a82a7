//! No kernel reads or writes outside its slices: every operation, tier and element type with all of its slices first
//! ending right before a page that nobody may touch, then starting right after one. A step outside kills the test,
//! which names the case. Prefetches may go anywhere: they never fault.

use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use sparrow_kernels::*;

/// Around every vector, tile, word and group edge.
const EDGES: [usize; 17] = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 65, 127, 130, 257];

/// The side of a slice on which the forbidden page lies.
#[derive(Clone, Copy, Debug)]
enum Guard {
    Before,
    After,
}

fn page() -> usize {
    // SAFETY: a query without memory.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// Numbers between two pages that must not be touched.
struct Guarded<T> {
    mapping: *mut libc::c_void,
    size: usize,
    start: *mut T,
    len: usize,
}

impl<T: Copy> Guarded<T> {
    fn new(guard: Guard, values: &[T]) -> Self {
        let page = page();
        let bytes = size_of_val(values);
        let inside = bytes.next_multiple_of(page).max(page);
        let (mapping, size) = reserve(inside + 2 * page);
        let first = mapping.cast::<u8>().wrapping_add(page);
        // SAFETY: these pages are ours alone.
        let result = unsafe { libc::mprotect(first.cast(), inside, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(result, 0, "mprotect");
        let start = match guard {
            Guard::Before => first,
            Guard::After => first.wrapping_add(inside - bytes),
        };
        let start = start.cast::<T>();
        assert!(start.is_aligned());
        // SAFETY: `bytes` bytes from start are writable, and new.
        unsafe { start.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        Self { mapping, size, start, len: values.len() }
    }
}

impl Guarded<u8> {
    /// A file's bytes, mapped so that a forbidden page follows the file's last page.
    fn file(bytes: &[u8]) -> Self {
        let page = page();
        assert!(bytes.len().is_multiple_of(page));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let (mapping, size) = reserve(bytes.len() + page);
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&file);
        // SAFETY: the reserved pages are ours, and replaced by those of the file, which nobody else writes.
        let start = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
            libc::mmap(mapping, bytes.len(), libc::PROT_READ, flags, descriptor, 0)
        };
        assert_eq!(start, mapping, "mmap of a file");
        Self { mapping, size, start: start.cast(), len: bytes.len() }
    }
}

/// `size` bytes of pages that may not be touched.
fn reserve(size: usize) -> (*mut libc::c_void, usize) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping wherever there is room.
    let mapping = unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0) };
    assert_ne!(mapping, libc::MAP_FAILED, "mmap");
    (mapping, size)
}

// SAFETY: it owns its numbers, as a Vec does.
unsafe impl<T: Sync> Sync for Guarded<T> {}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no slice of it is alive.
        unsafe { libc::munmap(self.mapping, self.size) };
    }
}

impl<T> Deref for Guarded<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` values were written from start on, or are those of the file.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed mutably. (Nobody writes to a file's.)
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// What runs right now, for the message of the signal handler.
static CASE: [AtomicU8; 200] = [const { AtomicU8::new(0) }; 200];

fn case(text: std::fmt::Arguments) {
    let text = text.to_string();
    for (i, byte) in CASE.iter().enumerate() {
        byte.store(text.as_bytes().get(i).copied().unwrap_or(b' '), Relaxed);
    }
}

/// Makes a step onto a forbidden page name the case.
fn name_the_case_of_a_fault() {
    extern "C" fn handler(_: libc::c_int) {
        let mut message = *b"touched memory outside its slices: ";
        // SAFETY: write and _exit may be called from a signal handler.
        unsafe {
            libc::write(2, message.as_mut_ptr().cast(), message.len());
            for byte in &CASE {
                let byte = byte.load(Relaxed);
                libc::write(2, (&raw const byte).cast(), 1);
            }
            libc::write(2, b"\n".as_ptr().cast(), 1);
            libc::_exit(FAULT);
        }
    }
    let handler: extern "C" fn(libc::c_int) = handler;
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: the handler calls only what a handler may call.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// The exit code of a process that touched a forbidden page.
const FAULT: i32 = 99;

fn computes() -> Vec<Compute> {
    Compute::all(2)
}

fn row_bytes(dtype: DType, cols: usize) -> usize {
    dtype.row_bytes(cols)
}

/// Weights whose bytes are all alike: a number near 0.01 or 1 in every float type.
fn weights(guard: Guard, dtype: DType, rows: usize, cols: usize) -> Guarded<u8> {
    Guarded::new(guard, &vec![0x3c; rows * row_bytes(dtype, cols)])
}

fn floats(guard: Guard, n: usize) -> Guarded<f32> {
    Guarded::new(guard, &(0..n).map(|i| i as f32 / 64.0 - 1.0).collect::<Vec<f32>>())
}

/// Every third number below n, and the last.
fn ids(guard: Guard, n: usize) -> Guarded<u32> {
    Guarded::new(guard, &(0..n as u32).filter(|&i| i % 3 == 1 || i as usize == n - 1).collect::<Vec<u32>>())
}

fn linear(compute: &Compute, guard: Guard, dtype: DType, m: usize, n: usize, k: usize) {
    case(format_args!("linear {dtype} m={m} n={n} k={k} {} {guard:?}", compute.isa()));
    let (bytes, x, bias) = (weights(guard, dtype, n, k), floats(guard, m * k), floats(guard, n));
    let mut out = floats(guard, m * n);
    let matrix = Matrix::new(dtype, n, k, &bytes);
    compute.linear(&x, m, &mut [LinearPart { weights: matrix.into(), bias: Some(&bias), out: &mut out }]);
    // [in, out]: all inputs, then some.
    let bytes = weights(guard, dtype, n, k);
    let weights = Matrix::new(dtype, n, k, &bytes);
    case(format_args!("linear_in_out {dtype} m={m} k={n} n={k} {} {guard:?}", compute.isa()));
    let (x, bias, ids) = (floats(guard, m * n), floats(guard, k), ids(guard, n));
    let mut out = floats(guard, m * k);
    for inputs in [None, Some(&ids[..])] {
        compute.linear_in_out(
            &x,
            m,
            inputs,
            &mut [LinearPart { weights: weights.into(), bias: Some(&bias), out: &mut out }],
        );
    }
}

/// Weights of which a third is stored.
fn bitmap(compute: &Compute, guard: Guard, dtype: DType, m: usize, n: usize, k: usize) {
    if !BitmapParts::supports(dtype) {
        return;
    }
    case(format_args!("bitmap {dtype} m={m} n={n} k={k} {} {guard:?}", compute.isa()));
    let mut dense = vec![0; n * row_bytes(dtype, k)];
    for (r, row) in dense.chunks_exact_mut(row_bytes(dtype, k)).enumerate() {
        let values: Vec<f32> = (0..k).map(|i| if (i + r) % 3 == 0 { 0.5 } else { 0.0 }).collect();
        encode(dtype, &values, row);
    }
    let packed = pack(compute, Matrix::new(dtype, n, k, &dense));
    let [mask, values, scales] = [&packed.mask, &packed.values, &packed.scales].map(|bytes| Guarded::new(guard, bytes));
    let offsets = Guarded::new(guard, &packed.offsets);
    let parts = BitmapParts { mask: &mask, offsets: &offsets, values: &values, scales: &scales, ..packed.parts() };
    let weights = Bitmap::new(parts).unwrap();
    let (x, mut out) = (floats(guard, m * k), floats(guard, m * n));
    compute.linear(&x, m, &mut [LinearPart { weights: weights.into(), bias: None, out: &mut out }]);
    let (x, mut out, ids) = (floats(guard, m * n), floats(guard, m * k), ids(guard, n));
    for inputs in [None, Some(&ids[..])] {
        compute.linear_in_out(&x, m, inputs, &mut [LinearPart { weights: weights.into(), bias: None, out: &mut out }]);
    }
    let (x, part) = (floats(guard, m * k), weights.into());
    let mlp = SparseMlp {
        gate: Some(part),
        up: part,
        down: part,
        gate_bias: None,
        up_bias: None,
        down_bias: None,
        left_out: None,
        activation: Activation::Silu,
        pooled: None,
    };
    compute.sparse_mlp(&mlp, &SparseMlpInputs { x: &x, rows: m, neurons: &ids, masks: None, gate: None }, &mut out);
    unpack(compute, weights, &mut Guarded::new(guard, &dense));
}

#[test]
fn operations_stay_within_their_slices() {
    name_the_case_of_a_fault();
    for compute in computes() {
        for guard in [Guard::Before, Guard::After] {
            for dtype in DType::ALL {
                for k in EDGES.into_iter().filter(|k| dtype.is_writable() || k % 2 == 1) {
                    for (m, n) in [(1, 1), (1, 9), (3, 17), (8, 8), (9, 16), (17, 33)] {
                        linear(&compute, guard, dtype, m, n, k);
                    }
                    for (m, n) in [(1, 1), (1, 9), (3, 17), (8, 8), (9, 16), (17, 33)] {
                        bitmap(&compute, guard, dtype, m, n, k);
                    }
                    sparse_mlp(&compute, guard, dtype, 33, k);
                    transposition(&compute, guard, dtype, 9, k);
                }
                for n in EDGES {
                    for m in [1, 2, 11, 40] {
                        linear(&compute, guard, dtype, m, n, 66);
                    }
                    sparse_mlp(&compute, guard, dtype, n, 50);
                }
                // Tails of more than a page.
                for (m, n, k) in [(1, 67, 2063), (5, 1029, 66), (33, 300, 1031)] {
                    linear(&compute, guard, dtype, m, n, k);
                }
                for (m, n, k) in [(1, 67, 2063), (7, 35, 1063), (33, 300, 531)] {
                    bitmap(&compute, guard, dtype, m, n, k);
                }
                sparse_mlp(&compute, guard, dtype, 515, 1031);
            }
            for dtype in DType::CACHES {
                for head_dim in [1, 8, 15, 16, 33, 64, 100, 128] {
                    for (rows, capacity) in [(1, 1), (1, 40), (2, 17), (20, 33), (50, 130)] {
                        attention(&compute, guard, dtype, rows, capacity, head_dim);
                    }
                }
            }
            for n in EDGES.into_iter().chain([4099]) {
                vectors(&compute, guard, n);
                integers::<i32>(&compute, guard, 17, n);
                integers::<i64>(&compute, guard, 17, n);
            }
        }
    }
}

fn sparse_mlp(compute: &Compute, guard: Guard, dtype: DType, neurons: usize, hidden: usize) {
    let parts = [(); 3].map(|()| weights(guard, dtype, neurons, hidden));
    let [gate, up, down] = parts.each_ref().map(|bytes| Matrix::new(dtype, neurons, hidden, bytes).into());
    let biases = [neurons, neurons, hidden].map(|n| floats(guard, n));
    let ids = ids(guard, neurons);
    for m in [1, 3, 18] {
        let (x, mut out) = (floats(guard, m * hidden), floats(guard, m * hidden));
        let gate_values = floats(guard, m * neurons);
        let masks = Guarded::new(guard, &vec![0x5a5a_5a5a_5a5a_5a5a_u64; m * mask_words(neurons)]);
        for (gated, known) in [(true, false), (true, true), (false, false)] {
            case(format_args!(
                "sparse_mlp {dtype} m={m} I={neurons} H={hidden} {gated} {known} {} {guard:?}",
                compute.isa()
            ));
            let mlp = SparseMlp {
                gate: gated.then_some(gate),
                up,
                down,
                gate_bias: Some(&biases[0]),
                up_bias: Some(&biases[1]),
                down_bias: Some(&biases[2]),
                left_out: Some(&biases[0]),
                activation: Activation::Silu,
                pooled: None,
            };
            compute.sparse_mlp(
                &mlp,
                &SparseMlpInputs {
                    x: &x,
                    rows: m,
                    neurons: &ids,
                    masks: Some(&masks),
                    gate: known.then_some(&gate_values[..]),
                },
                &mut out,
            );
            // A pool whose records begin with gate, up or down, so that each is once at either end.
            let stride = row_bytes(dtype, hidden) + 5;
            let bytes = Guarded::new(guard, &vec![0x3c; (neurons - 1) * stride + row_bytes(dtype, hidden)]);
            let rows_of_pool = Matrix::strided(dtype, neurons, hidden, stride, &bytes).into();
            let rows = Guarded::new(guard, &ids.iter().rev().copied().collect::<Vec<u32>>());
            let pooled = Some(Pooled { neurons, rows: &rows });
            let gate = gated.then_some(rows_of_pool);
            let mlp = SparseMlp { gate, up: rows_of_pool, down: rows_of_pool, pooled, ..mlp };
            compute.sparse_mlp(
                &mlp,
                &SparseMlpInputs {
                    x: &x,
                    rows: m,
                    neurons: &ids,
                    masks: Some(&masks),
                    gate: known.then_some(&gate_values[..]),
                },
                &mut out,
            );
        }
    }
}

fn integers<T: Integer + From<i8>>(compute: &Compute, guard: Guard, neurons: usize, hidden: usize) {
    case(format_args!("sparse_mlp_integer I={neurons} H={hidden} {} {guard:?}", compute.isa()));
    let values = |n: usize| Guarded::new(guard, &vec![T::from(3); n]);
    let [gate, up, down] = [(); 3].map(|()| values(neurons * hidden));
    let mlp = IntegerMlp {
        neurons,
        hidden,
        gate: Some(&*gate),
        up: &up,
        down: &down,
        activation: IntegerActivation::Relu,
        fraction_bits: 12,
    };
    let (x, mut out) = (values(2 * hidden), values(2 * hidden));
    compute.sparse_mlp_integer(&mlp, &x, 2, &ids(guard, neurons), None, &mut out).unwrap();
}

fn transposition(compute: &Compute, guard: Guard, dtype: DType, rows: usize, cols: usize) {
    case(format_args!("transpose {dtype} {rows} {cols} {} {guard:?}", compute.isa()));
    if !dtype.is_quantized() {
        let (from, mut to) = (weights(guard, dtype, rows, cols), weights(guard, dtype, cols, rows));
        transpose(compute, Matrix::new(dtype, rows, cols, &from), &mut to);
    }
    case(format_args!("decode, encode {dtype} {cols} {guard:?}"));
    let (mut row, mut values) = (weights(guard, dtype, 1, cols), floats(guard, cols));
    decode(dtype, &row, &mut values);
    if dtype.is_writable() {
        encode(dtype, &values, &mut row);
    }
}

fn attention(compute: &Compute, guard: Guard, dtype: DType, rows: usize, capacity: usize, head_dim: usize) {
    let (heads, kv_heads) = (4, 2);
    for soft_cap in [None, Some(3.0)] {
        case(format_args!(
            "attention {dtype} rows={rows} capacity={capacity} head_dim={head_dim} {} {guard:?}",
            compute.isa()
        ));
        let [keys, values] = [(); 2].map(|()| weights(guard, dtype, kv_heads * capacity, head_dim));
        let (q, mut out) = (floats(guard, rows * heads * head_dim), floats(guard, rows * heads * head_dim));
        let shape = AttentionShape { heads, kv_heads, head_dim, scale: 0.1, soft_cap };
        // The last row sees the whole cache, the first only its end.
        let view = |row: usize| {
            let len = capacity - (rows - 1 - row).min(capacity);
            let rows = KvRows::Dense(DenseKv { dtype, keys: &keys, values: &values, capacity });
            KvView { rows, start: len * 3 / 4 * usize::from(row == 0), len }
        };
        compute.attention(&shape, &q, rows, &view, &mut out);
    }
}

/// The operations on vectors of f32 and on bitmaps.
fn vectors(compute: &Compute, guard: Guard, n: usize) {
    let isa = compute.isa();
    let now = |op: &str| case(format_args!("{op} n={n} {isa} {guard:?}"));
    let (x, y) = (floats(guard, n), floats(guard, n));
    let mut out = floats(guard, n);
    for a in Activation::ALL {
        now("activate, gated");
        compute.activate(a, &mut out);
        compute.gated(a, &x, &y, &mut out);
    }
    now("rms_norm, layer_norm");
    compute.rms_norm(&x, &y, 0.0, 1e-5, &mut out);
    compute.layer_norm(&x, &y, Some(&y), 1e-5, &mut out);
    now("add_assign");
    compute.add_assign(&mut out, &x);
    now("softmax, argmax");
    compute.softmax(&mut out);
    compute.argmax(&x);
    now("rope");
    let half = floats(guard, n / 2 * 3);
    let mut heads = floats(guard, 3 * 2 * n);
    compute.rope(&mut heads, 2, n, &half, &half, n / 2 * 2);
    now("masks");
    let mut mask = Guarded::new(guard, &vec![u64::MAX; mask_words(n)]);
    for magnitude in [false, true] {
        compute.mask_above(&x, 0.1, magnitude, &mut mask);
    }
    let mut other = Guarded::new(guard, &mask);
    union_masks(&mask, mask.len(), &mut other);
    now("mask_to_ids");
    compute.mask_to_ids(&mask, &mut Vec::new());
    now("mean_std, kth_largest");
    compute.mean_std(&x);
    compute.kth_largest(&x, n.div_ceil(2), &mut Vec::new());
}

#[test]
fn weights_at_the_end_of_a_mapped_file_are_not_read_past_it() {
    name_the_case_of_a_fault();
    let page = page();
    let file = Guarded::file(&vec![0x3c; 3 * page]);
    for compute in computes() {
        for dtype in DType::ALL {
            // One, two and three pages of weights; the last row ends with the file.
            for (pages, rows) in [(1, 8), (2, 1), (2, 32), (3, 16), (3, 3)] {
                let cols = (1..).take_while(|&cols| rows * row_bytes(dtype, cols) <= pages * page).last().unwrap();
                let bytes = &file[3 * page - rows * row_bytes(dtype, cols)..];
                let weights = Matrix::new(dtype, rows, cols, bytes);
                for m in [1, 8, 20] {
                    case(format_args!("mapped {dtype} m={m} [{rows}, {cols}] {}", compute.isa()));
                    let (x, mut out) = (vec![0.5; m * cols], vec![0.0; m * rows]);
                    compute.linear(&x, m, &mut [LinearPart { weights: weights.into(), bias: None, out: &mut out }]);
                    compute.linear_in_out(
                        &out,
                        m,
                        None,
                        &mut [LinearPart { weights: weights.into(), bias: None, out: &mut vec![0.0; m * cols] }],
                    );
                    let mlp = SparseMlp {
                        gate: Some(weights.into()),
                        up: weights.into(),
                        down: weights.into(),
                        gate_bias: None,
                        up_bias: None,
                        down_bias: None,
                        left_out: None,
                        activation: Activation::Relu,
                        pooled: None,
                    };
                    compute.sparse_mlp(
                        &mlp,
                        &SparseMlpInputs { x: &x, rows: m, neurons: &[rows as u32 - 1], masks: None, gate: None },
                        &mut vec![0.0; m * cols],
                    );
                }
            }
        }
    }
}

#[test]
#[ignore = "reads past a slice on purpose, for the next test"]
fn a_read_past_a_slice() {
    name_the_case_of_a_fault();
    case(format_args!("on purpose"));
    let (before, values): (isize, _) = match std::env::var("GUARD_SIDE").as_deref() {
        Ok("before") => (-1, Guarded::new(Guard::Before, &[1.0f32; 5])),
        _ => (5, Guarded::new(Guard::After, &[1.0f32; 5])),
    };
    // SAFETY: none; the fault is the point.
    std::hint::black_box(unsafe { values.as_ptr().wrapping_offset(before).read_volatile() });
}

#[test]
fn guard_pages_catch_a_read_past_a_slice() {
    for side in ["before", "after"] {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "guard::a_read_past_a_slice", "--ignored", "--nocapture"])
            .env("GUARD_SIDE", side)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(FAULT), "{side}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("outside its slices: on purpose"));
    }
}
