//! The projections of a layer.

use sparrow::internals::backend::{Layer, Projection, Row, Step};

use super::masks::{above, count, kept, union};
use super::rows::Rows;
use super::weights::{Matrix, Placed};

/// One decoder layer.
pub type At<'a> = Layer<'a, Placed>;

/// `x·Wᵀ + b` of every row of `x`, `[m, in]`, without the inputs that the layer's rules leave out of a projection; the first
/// token of a sequence keeps all.
pub fn project(layer: &At, step: &mut Step, projection: Projection, matrix: &Matrix, x: &Rows) -> Rows {
    let Some(selection) = layer.inputs else {
        step.meter.read(matrix.bytes);
        return x.iter().map(|x| matrix.times(x)).collect();
    };
    let (rule, norms) = selection.of(projection);
    let norm = |i: usize| norms.map_or(1.0, |norms| f64::from(norms[i]));
    let magnitudes = |x: &Vec<f64>| x.iter().enumerate().map(|(i, v)| v.abs() * norm(i)).collect::<Vec<f64>>();
    let mask = |(x, row): (&Vec<f64>, &Row)| match row.position {
        0 => vec![true; x.len()],
        _ => above(rule, &magnitudes(x)),
    };
    let masks: Vec<_> = x.iter().zip(step.rows).map(mask).collect();
    let (inputs, outputs) = (matrix.inputs() as u64, matrix.outputs() as u64);
    step.meter.active(layer.index, masks.iter().map(|mask| count(mask) * outputs), inputs * outputs);
    step.meter.read(count(&union(&masks)) * matrix.bytes / inputs);
    x.iter().zip(&masks).map(|(x, mask)| matrix.times(&kept(x, mask, |_| 0.0))).collect()
}
