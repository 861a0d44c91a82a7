//! Transposition of stored matrices.

use crate::compute::Compute;
use crate::dtype::{DType, Matrix};
use crate::parallel::SharedMut;

/// Side of the square block that is transposed at once: its lines stay in L1.
const BLOCK: usize = 64;

/// out `[cols, rows]` = m `[rows, cols]` transposed, elements copied as they are. Parallel.
///
/// # Panics
/// If the type is quantised (its rows cannot be taken apart), `m` is strided, or `out.len()` is not `m.bytes().len()`.
pub fn transpose(compute: &Compute, m: Matrix, out: &mut [u8]) {
    assert_eq!(out.len(), m.bytes().len(), "transpose: out.len() is not the length of the matrix");
    assert_eq!(m.stride(), m.row_bytes(), "transpose: strided rows");
    match m.dtype() {
        DType::F32 => transpose_elements::<4>(compute, m, out),
        DType::F16 | DType::BF16 => transpose_elements::<2>(compute, m, out),
        quantized => panic!("transpose: rows of {quantized} cannot be taken apart"),
    }
}

fn transpose_elements<const SIZE: usize>(compute: &Compute, m: Matrix, out: &mut [u8]) {
    let (rows, cols) = (m.rows(), m.cols());
    let from = m.bytes().as_chunks::<SIZE>().0;
    let to = SharedMut::new(out.as_chunks_mut::<SIZE>().0);
    compute.workers.parallel(cols.div_ceil(BLOCK), rows * cols, &|task| {
        let columns = task * BLOCK..cols.min((task + 1) * BLOCK);
        // SAFETY: each task writes the rows of the result that its columns become.
        let to = unsafe { to.part(columns.start * rows..columns.end * rows) };
        for start in (0..rows).step_by(BLOCK) {
            for (i, c) in columns.clone().enumerate() {
                for r in start..rows.min(start + BLOCK) {
                    to[i * rows + r] = from[r * cols + c];
                }
            }
        }
    });
}
