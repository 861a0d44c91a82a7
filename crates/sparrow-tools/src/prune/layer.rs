//! Pruning the matrices of one layer.

use sparrow::internals::checkpoint::{Checkpoint, file_dtype};
use sparrow::{Cpu, Error, Result};
use sparrow_kernels::{DType, encode};

use super::options::{Method, Target};
use super::score::Group;
use super::{refit, score, sparsegpt};
use crate::layerwise::{Input, LayerInputs, LayerMatrix, NewTensor, Replaced};

/// These matrices of `source`, less a fraction `sparsity` of each, or as a pattern says.
///
/// # Errors
/// If the inputs were not finite or cannot be made up for, or a weight does not fit its type any more.
pub(super) fn prune(
    cpu: &Cpu,
    source: &Checkpoint,
    layer: usize,
    matrices: &[LayerMatrix],
    inputs: &mut LayerInputs,
    (method, target): (Method, Target),
    sparsity: &[f64],
) -> Result<Replaced> {
    let group = |sparsity| match (target, method) {
        (Target::Pattern(pattern), _) => Group::Pattern(pattern),
        (Target::Sparsity(_), Method::Magnitude) => Group::Matrix(sparsity),
        (Target::Sparsity(_), Method::Wanda | Method::SparseGpt) => Group::Row(sparsity),
    };
    let mut pruned = Replaced::new();
    for input in Input::ALL {
        let norms = inputs.norms(input)?;
        let hessian = inputs.hessian(input)?.map(|hessian| {
            let hessian = hessian.damped();
            let factor = hessian.clone().inverse_factor().ok_or_else(|| {
                let message = format!("the Hessian of layer {layer} cannot be factored: use more tokens, or wanda");
                Error::option("method", message)
            })?;
            Ok((hessian, factor))
        });
        let hessian = hessian.transpose()?;
        for (matrix, &sparsity) in matrices.iter().zip(sparsity).filter(|(m, _)| m.input == input) {
            let stored = matrix.weights(source)?;
            let (weights, group) = (stored.matrix(), group(sparsity));
            let bytes = match &hessian {
                None => score::prune(cpu, weights, norms.as_deref(), group),
                Some((hessian, factor)) => {
                    let mut values = sparsegpt::prune(cpu, weights, factor, group);
                    refit::refit(cpu, &matrix.values(source)?, hessian, &mut values);
                    to_bytes(matrix.dtype, &values).ok_or_else(|| Error::Tensor {
                        path: source.dir().to_owned(),
                        tensor: matrix.name.clone(),
                        expected: format!("weights that fit {} when others are pruned", matrix.dtype),
                        found: "some that do not: use wanda for this tensor's layer".into(),
                    })?
                }
            };
            let (name, shape) = (matrix.name.clone(), vec![matrix.rows, matrix.cols]);
            let new = NewTensor { name: name.clone(), dtype: file_dtype(matrix.dtype), shape, bytes };
            pruned.insert(name, vec![new]);
        }
    }
    Ok(pruned)
}

/// None if a value is too large for the type.
fn to_bytes(dtype: DType, values: &[f32]) -> Option<Vec<u8>> {
    let largest = values.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    let limit = if dtype == DType::F16 { half::f16::MAX.to_f32() } else { f32::MAX };
    // A comparison that is false for NaN.
    let fits = largest <= limit && values.iter().all(|v| v.is_finite());
    fits.then(|| {
        let mut bytes = vec![0; dtype.row_bytes(values.len())];
        encode(dtype, values, &mut bytes);
        bytes
    })
}
