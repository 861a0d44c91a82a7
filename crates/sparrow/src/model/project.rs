//! Linear layers of a block, over all inputs or those that an input selector keeps.

use super::Stats;
use super::mlp::GATHER_ROWS;
use super::weights::Linear;
use crate::backend::Cpu;
use crate::sparsity::{ActiveInputs, Projection, Selector};

/// `out = x·Wᵀ + b` of projections that share the input `x`, `[m, in]`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn project<const N: usize>(
    cpu: &Cpu,
    selector: &Selector,
    layer: usize,
    x: &[f32],
    m: usize,
    projections: [(Projection, &Linear, &mut [f32]); N],
    s: &mut ActiveInputs,
    stats: &mut Stats,
) {
    let Some(thresholds) = selector.inputs() else {
        stats.layer_bytes += projections.iter().map(|(_, linear, _)| linear.weight.byte_len()).sum::<u64>();
        return cpu.linear(x, m, projections.map(|(_, linear, out)| (linear, out)));
    };
    for (projection, linear, out) in projections {
        assert!(linear.input_major, "input selection needs input-major weights: use Model::prepare");
        let (weights, bias) = (linear.weight.stored(), linear.bias.as_deref());
        let kept = thresholds.linear(cpu, layer, projection, weights, bias, x, m, m <= GATHER_ROWS, out, s);
        stats.add(layer, kept.weights, kept.of, kept.bytes);
    }
}
