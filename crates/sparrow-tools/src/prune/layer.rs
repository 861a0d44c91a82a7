//! Pruning the matrices of one layer.

use std::collections::BTreeMap;

use sparrow::internals::checkpoint::Checkpoint;
use sparrow::{Cpu, Error, Result};
use sparrow_kernels::{DType, encode};

use super::inputs::{LayerInputs, Statistics};
use super::options::{Method, Target};
use super::score::Group;
use super::tensors::{Input, Prunable};
use super::{score, sparsegpt};

/// The bytes of each of these matrices of `source`, less a fraction `sparsity`, or as a pattern says.
///
/// # Errors
/// If the inputs were not finite, or a weight does not fit its type any more.
pub(super) fn prune(
    cpu: &Cpu,
    source: &Checkpoint,
    layer: usize,
    matrices: &[Prunable],
    inputs: &mut LayerInputs,
    (method, target): (Method, Target),
    sparsity: f64,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let group = match (target, method) {
        (Target::Pattern(pattern), _) => Group::Pattern(pattern),
        (Target::Sparsity(_), Method::Magnitude) => Group::Matrix(sparsity),
        (Target::Sparsity(_), Method::Wanda | Method::SparseGpt) => Group::Row(sparsity),
    };
    let mut pruned = BTreeMap::new();
    for input in Input::ALL {
        let statistics = inputs.take(input, layer)?;
        for matrix in matrices.iter().filter(|m| m.input == input) {
            let stored = matrix.weights(source)?;
            let weights = stored.matrix();
            let bytes = match &statistics {
                None => score::prune(cpu, weights, None, group),
                Some(Statistics::Norms(norms)) => score::prune(cpu, weights, Some(norms), group),
                Some(Statistics::InverseFactor(factor)) => {
                    let values = sparsegpt::prune(cpu, weights, factor, group);
                    to_bytes(matrix.dtype, &values).ok_or_else(|| Error::Tensor {
                        path: source.dir().to_owned(),
                        tensor: matrix.name.clone(),
                        expected: format!("weights that fit {} when others are pruned", matrix.dtype),
                        found: "some that do not: use wanda for this tensor's layer".into(),
                    })?
                }
            };
            pruned.insert(matrix.name.clone(), bytes);
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
