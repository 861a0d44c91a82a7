//! Norms and linear layers.

use sparrow_kernels::LinearPart;

use super::inputs::ActiveInputs;
use super::machine::Cpu;
use crate::backend::{Layer, Projection, Step};
use crate::spec::{Norm, NormKind};
use crate::weights::{LinearView, NormWeights};

impl Cpu {
    /// `out = norm(x)`, row by row.
    pub(super) fn norm(&self, norm: &Norm, weights: &NormWeights, x: &[f32], out: &mut [f32]) {
        match norm.kind {
            NormKind::Rms { offset } => self.compute.rms_norm(x, &weights.weight, offset, norm.eps, out),
            NormKind::Layer => self.compute.layer_norm(x, &weights.weight, weights.bias.as_deref(), norm.eps, out),
        }
    }

    /// `out = norm(x)`, or `x` itself where there is no norm.
    pub(super) fn norm_or_copy(&self, norm: &Norm, weights: Option<&NormWeights>, x: &[f32], out: &mut [f32]) {
        match weights {
            Some(weights) => self.norm(norm, weights, x, out),
            None => out.copy_from_slice(x),
        }
    }

    /// `x = norm(x)`; `spare` is overwritten.
    pub(super) fn norm_in_place(&self, norm: &Norm, weights: &NormWeights, x: &mut [f32], spare: &mut [f32]) {
        let spare = &mut spare[..x.len()];
        spare.copy_from_slice(x);
        self.norm(norm, weights, spare, x);
    }

    /// `out = x·Wᵀ + b` for several layers that share `x`, `[m, in]`: in one parallel region, if all have the same layout.
    pub fn linear<const N: usize>(&self, x: &[f32], m: usize, layers: [(LinearView, &mut [f32]); N]) {
        match layers.iter().filter(|(layer, _)| layer.input_major).count() {
            0 => self.compute.linear(x, m, &mut layers.map(part)),
            some if some == N => self.compute.linear_in_out(x, m, None, &mut layers.map(part)),
            _ => layers.into_iter().for_each(|layer| self.linear(x, m, [layer])),
        }
    }

    /// `out = x·Wᵀ + b` of projections that share the input `x`, `[m, in]`, over all inputs or those above their thresholds.
    ///
    /// # Panics
    /// If inputs are left out of weights that are not input-major.
    pub(super) fn project<W, const N: usize>(
        &self,
        layer: &Layer<W>,
        step: &mut Step,
        x: &[f32],
        projections: [(Projection, LinearView, &mut [f32]); N],
        s: &mut ActiveInputs,
    ) {
        let m = step.rows.len();
        let Some(selection) = layer.inputs else {
            step.meter.read(projections.iter().map(|(_, linear, _)| linear.weight.size() as u64).sum());
            return self.linear(x, m, projections.map(|(_, linear, out)| (linear, out)));
        };
        let rules = projections.each_ref().map(|&(projection, ..)| selection.of(projection));
        let mut parts = projections.map(|(_, linear, out)| {
            assert!(linear.input_major, "input selection needs input-major weights");
            part((linear, out))
        });
        // They share their input, so those with one rule share the mask and the region.
        let mut parts = parts.as_mut_slice();
        for rules in rules.chunk_by(|(a, _), (b, _)| a == b) {
            let (these, rest) = std::mem::take(&mut parts).split_at_mut(rules.len());
            let bytes = s.linear(self, rules[0], x, step.rows, these);
            let width = these.iter().map(|part| part.weights.cols() as u64).sum::<u64>();
            let inputs = these[0].weights.rows() as u64;
            step.meter.active(layer.index, s.active().map(|n| n * width), inputs * width);
            step.meter.read(bytes);
            parts = rest;
        }
    }
}

fn part<'a>((layer, out): (LinearView<'a>, &'a mut [f32])) -> LinearPart<'a> {
    LinearPart { weights: layer.weight, bias: layer.bias, out }
}
