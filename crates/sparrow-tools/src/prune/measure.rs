//! What of a model was pruned, as its files have it.

use sparrow::Result;
use sparrow::internals::checkpoint::Checkpoint;
use sparrow_kernels::decode;

use super::record::LayerRecord;
use crate::layerwise::LayerMatrix;

/// Zeros ÷ weights over all of `chosen`, and what became of each layer.
///
/// # Errors
/// If a tensor cannot be read.
pub(super) fn measure(
    written: &Checkpoint,
    chosen: &[Vec<LayerMatrix>],
    targets: &[Vec<f64>],
) -> Result<(f64, Vec<LayerRecord>)> {
    let (mut zeros, mut weights) = (0, 0);
    let mut tensor = |matrix: &LayerMatrix| {
        let (mut row, stored) = (vec![0.0; matrix.cols], matrix.weights(written)?);
        let mut here = 0;
        for r in 0..matrix.rows {
            decode(matrix.dtype, stored.matrix().row(r), &mut row);
            here += row.iter().filter(|w| **w == 0.0).count();
        }
        written.release(|name| name == matrix.name);
        let of = matrix.rows * matrix.cols;
        (zeros, weights) = (zeros + here, weights + of);
        Ok((matrix.name.clone(), here as f64 / of as f64))
    };
    let layers = chosen
        .iter()
        .zip(targets)
        .map(|(matrices, targets)| {
            let tensors = matrices.iter().map(&mut tensor).collect::<Result<_>>()?;
            let weights = || matrices.iter().map(|m| (m.rows * m.cols) as f64);
            let zeros: f64 = weights().zip(targets).map(|(weights, target)| weights * target).sum();
            Ok(LayerRecord { target: zeros / weights().sum::<f64>().max(1.0), tensors })
        })
        .collect::<Result<_>>()?;
    Ok((zeros as f64 / weights as f64, layers))
}
