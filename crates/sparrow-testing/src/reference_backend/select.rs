//! Scores of neurons, and the rules that say which of them, or which inputs, are active for a token.

use sparrow::internals::backend::{ActiveNeurons, MaskCycle, Projection, Row, Scorer, SignBits, Step, Threshold};

use super::masks::{above, count, union};
use super::project::{At, project};
use super::rows::Rows;
use super::weights::Matrix;
use crate::reference::activate;

/// The neurons selected in one layer for the rows of a step.
pub struct Selection {
    pub scorer: Scorer,
    /// `[m, neurons]`: whether a neuron counts for a row.
    pub masks: Vec<Vec<bool>>,
}

impl Selection {
    /// Finds the neurons that are active for `h`, `[m, hidden]`, by `rule`: which everything but masks made beforehand has.
    pub fn find(&mut self, layer: &At, step: &mut Step, rule: Option<Threshold>, h: &Rows) {
        self.masks = match (&self.scorer, rule) {
            (Scorer::Masks(cycle), _) => given(cycle, layer, step),
            (scorer, Some(rule)) => {
                let whole = |row: &Row| row.position == 0 && scorer.gate_neurons(layer.index).is_some();
                let rows = step.rows;
                let scores = scores(scorer, layer, step, h);
                let mask = |(scores, row): (&Vec<f64>, &Row)| match whole(row) {
                    true => vec![true; scores.len()],
                    false => above(rule, scores),
                };
                scores.iter().zip(rows).map(mask).collect()
            }
            (scorer, None) => panic!("no rule for the scores of {scorer:?}"),
        };
        let neurons = layer.spec.intermediate_size as u64;
        step.meter.active(layer.index, self.masks.iter().map(|mask| count(mask)), neurons);
        step.meter.read(self.scorer.bytes(layer.index));
    }

    /// Neurons that are active for any row.
    pub fn union(&self) -> u64 {
        count(&union(&self.masks))
    }

    /// The masks as an observer sees them: of each row a bitmap, `[m, ceil(neurons / 64)]`.
    pub fn bits(&self) -> Vec<u64> {
        let word = |bits: &[bool]| bits.iter().enumerate().map(|(i, &bit)| u64::from(bit) << i).sum();
        self.masks.iter().flat_map(|mask| mask.chunks(64).map(word)).collect()
    }

    /// What an observer sees of [`bits`](Self::bits).
    pub fn active<'a>(&self, bits: &'a [u64]) -> ActiveNeurons<'a> {
        ActiveNeurons { masks: bits, neurons: self.masks[0].len() }
    }
}

/// The masks of the step's rows: those of a cycle follow each other token by token.
fn given(cycle: &MaskCycle, layer: &At, step: &Step) -> Vec<Vec<bool>> {
    let neurons = layer.spec.intermediate_size;
    let words = neurons.div_ceil(64);
    let mask = |r: usize| {
        let at = (step.before + r) % cycle.length * words;
        let bits = &cycle.masks[layer.index][at..at + words];
        (0..neurons).map(|i| bits[i / 64] >> (i % 64) & 1 == 1).collect()
    };
    (0..step.rows.len()).map(mask).collect()
}

/// What is compared with the threshold, `[m, neurons]`. Gate values, exact or predicted, are compared by the size of what the
/// activation lets through; predicted ones as they are where negative values are not let through at all, or where they are log-odds.
fn scores(scorer: &Scorer, layer: &At, step: &mut Step, h: &Rows) -> Rows {
    let activation = layer.spec.activation;
    let let_through = |gates: Vec<f64>| gates.iter().map(|&g| activate(activation, g).abs()).collect();
    let magnitudes = scorer.compares_magnitudes(activation, layer.index);
    match scorer {
        Scorer::Gate(_) => {
            let deciding = layer.weights.layers[layer.index].deciding();
            let weights = scorer.gate_neurons(layer.index).map(|neurons| &neurons.weights);
            let weight = |i: usize| weights.map_or(1.0, |weights| f64::from(weights[i]));
            let weighted = |row: Vec<f64>| row.into_iter().enumerate().map(|(i, score)| score * weight(i)).collect();
            let gates = project(layer, step, Projection::Gate, deciding, h);
            gates.into_iter().map(let_through).map(weighted).collect()
        }
        Scorer::LowRank(predictors) => {
            let p = &predictors[layer.index];
            let (a, b) = (Matrix::of(p.a.clone()), Matrix::of(p.b.clone())); // [r, hidden], [neurons, r]
            let of_row = |h: &Vec<f64>| {
                let low = b.times(&a.times(h));
                let gates = low.iter().zip(&p.bias).map(|(v, &bias)| v + f64::from(bias)).collect();
                if magnitudes { let_through(gates) } else { gates }
            };
            h.iter().map(of_row).collect()
        }
        Scorer::Signs(signs) => h.iter().map(|h| agreement(&signs[layer.index], h)).collect(),
        Scorer::Masks(_) => unreachable!("masks have no scores"),
    }
}

/// For each neuron the share of positive products of its gate's row with `h`, `[hidden]`, less that of negative ones.
fn agreement(signs: &SignBits, h: &[f64]) -> Vec<f64> {
    let of_neuron = |row: &[u64]| {
        let agrees = |(j, h): (usize, &f64)| (row[j / 64] >> (j % 64) & 1 == 1) == h.is_sign_negative();
        let products = h.iter().enumerate().map(|at| if agrees(at) { 1.0 } else { -1.0 });
        products.sum::<f64>() / signs.hidden as f64
    };
    signs.bits.chunks_exact(signs.hidden.div_ceil(64)).map(of_neuron).collect()
}
