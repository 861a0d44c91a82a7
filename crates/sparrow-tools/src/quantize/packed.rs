//! Rounded matrices as compressed-tensors stores them, `pack-quantized`.

use safetensors::Dtype;
use sparrow::internals::checkpoint::file_dtype;
use sparrow::internals::weights::INPUT_MAJOR;
use sparrow_kernels::encode;

use super::grid::Grid;
use super::options::Along;
use super::round::Rounded;
use crate::layerwise::{LayerMatrix, NewTensor};

/// The tensors that stand for `matrix`: those of its layer, or where groups lie along outputs of the transposed matrix.
pub(super) fn tensors(grid: &Grid, matrix: &LayerMatrix, rounded: &Rounded) -> Vec<NewTensor> {
    let layer = matrix.name.strip_suffix(".weight").unwrap_or(&matrix.name);
    let transposed;
    let (layer, [rows, cols], rounded) = match grid.along {
        Along::Input => (layer.to_owned(), [matrix.rows, matrix.cols], rounded),
        Along::Output => {
            transposed = rounded.transposed(matrix.cols);
            (format!("{layer}.{INPUT_MAJOR}"), [matrix.cols, matrix.rows], &transposed)
        }
    };
    let (groups, per_byte) = (grid.groups(cols), 8 / grid.bits as usize);
    let unsigned = |code: f32| (code as i32 + (1 << (grid.bits - 1))) as u8;

    let words = (cols * grid.bits as usize).div_ceil(32);
    let mut packed = vec![0; rows * words * 4];
    for (r, (row, bytes)) in rounded.values.chunks_exact(cols).zip(packed.chunks_exact_mut(words * 4)).enumerate() {
        for (j, &value) in row.iter().enumerate() {
            let code = unsigned(grid.code(value, rounded.scales[r * groups + j / grid.group]));
            bytes[j / per_byte] |= code << (j % per_byte * grid.bits as usize);
        }
    }
    let scales: Vec<f32> = rounded.scales.iter().map(|of| of.scale).collect();
    let mut scale_bytes = vec![0; grid.stored.row_bytes(scales.len())];
    encode(grid.stored, &scales, &mut scale_bytes);

    let tensor = |part: &str, dtype, shape: Vec<usize>, bytes| NewTensor {
        name: format!("{layer}.{part}"),
        dtype,
        shape,
        bytes,
    };
    let shape = [rows, cols].iter().flat_map(|&n| (n as i64).to_le_bytes()).collect();
    let mut tensors = vec![
        tensor("weight_packed", Dtype::I32, vec![rows, words], packed),
        tensor("weight_scale", file_dtype(grid.stored), vec![rows, groups], scale_bytes),
        tensor("weight_shape", Dtype::I64, vec![2], shape),
    ];
    if grid.zero_points {
        let words = rows.div_ceil(8);
        // Packed down the rows: the zero points of eight rows are a word.
        let mut zeros = vec![0; words * groups * 4];
        for (at, of) in rounded.scales.iter().enumerate() {
            let (row, g) = (at / groups, at % groups);
            zeros[(row / 8 * groups + g) * 4 + row % 8 / 2] |= unsigned(of.zero) << (row % 2 * 4);
        }
        tensors.push(tensor("weight_zero_point", Dtype::I32, vec![words, groups], zeros));
    }
    tensors
}
