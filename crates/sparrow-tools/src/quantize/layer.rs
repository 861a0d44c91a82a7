//! Quantising the matrices of one layer.

use sparrow::internals::checkpoint::Checkpoint;
use sparrow::internals::spec::ModelSpec;
use sparrow::{Cpu, Error, Result};

use super::awq::Reader;
use super::fold::Origin;
use super::grid::Grid;
use super::options::{Method, QuantizeOptions};
use super::{awq, fold, packed, refine, round};
use crate::layerwise::{Hessian, Input, LayerInputs, LayerMatrix, Replaced};

/// A layer to quantise.
pub(super) struct Layer<'a> {
    pub cpu: &'a Cpu,
    pub spec: &'a ModelSpec,
    pub source: &'a Checkpoint,
    pub index: usize,
    /// The matrices that are chosen.
    pub matrices: &'a [LayerMatrix],
    /// Their bits.
    pub bits: &'a [u32],
    pub options: &'a QuantizeOptions,
}

impl Layer<'_> {
    /// The tensors that stand for the matrices, and what else is changed for them.
    ///
    /// # Errors
    /// If the inputs were not finite or cannot be made up for, or weights cannot be read.
    pub fn quantize(&self, inputs: &mut LayerInputs) -> Result<Replaced> {
        match self.options.method {
            Method::Rtn | Method::Gptq => self.round(inputs),
            Method::Awq => self.scale_and_round(inputs),
        }
    }

    /// By GPTQ where there are Hessians, otherwise to the nearest.
    fn round(&self, inputs: &mut LayerInputs) -> Result<Replaced> {
        let mut replaced = Replaced::new();
        for input in Input::ALL {
            let feedback = inputs.hessian(input)?.map(|hessian| Feedback::new(hessian, self.index)).transpose()?;
            for matrix in self.readers(input) {
                let (grid, weights) = (self.grid(matrix), matrix.values(self.source)?);
                let rounded = match &feedback {
                    None => round::to_nearest(self.cpu, &grid, weights, matrix.cols, &vec![1.0; matrix.cols]),
                    Some(Feedback { hessian, importance, order, factor }) => {
                        let mut rounded = round::with_feedback(self.cpu, &grid, &weights, importance, (order, factor));
                        refine::refine(self.cpu, &grid, &weights, hessian, &mut rounded);
                        rounded
                    }
                };
                replaced.insert(matrix.name.clone(), packed::tensors(&grid, matrix, &rounded));
            }
        }
        Ok(replaced)
    }

    /// By AWQ: every input whose values can be scaled where they come from is scaled as the search finds.
    fn scale_and_round(&self, inputs: &mut LayerInputs) -> Result<Replaced> {
        let mut replaced = Replaced::new();
        let mut scaled = Vec::new();
        for input in Input::ALL {
            let Some(hessian) = inputs.hessian(input)?.map(Hessian::damped) else { continue };
            scaled.push(self.scaled(input, &hessian, &mut replaced)?);
        }
        for matrix in self.matrices {
            let Some(of) = scaled.iter().find(|scaled| scaled.input == matrix.input) else { continue };
            let mut weights = matrix.values(self.source)?;
            awq::scale_columns(&mut weights, &of.factors);
            for Scaled { input, factors, origin, .. } in &scaled {
                if let Some(Origin::Rows(name, first)) = origin.as_ref()
                    && *name == matrix.name
                {
                    let factors = fold::of_rows(self.spec, *input, factors);
                    let rows = weights.chunks_exact_mut(matrix.cols).skip(*first).zip(&factors);
                    rows.for_each(|(row, factor)| row.iter_mut().for_each(|w| *w /= factor));
                    let layer = name.strip_suffix(".weight").unwrap_or(name);
                    fold::divide_bias(self.source, layer, *first, &factors, &mut replaced);
                }
            }
            let grid = self.grid(matrix);
            let rounded = round::to_nearest(self.cpu, &grid, weights, matrix.cols, &of.importance);
            replaced.insert(matrix.name.clone(), packed::tensors(&grid, matrix, &rounded));
        }
        Ok(replaced)
    }

    /// How the values of an input are scaled; what a norm becomes by that goes to `replaced`.
    fn scaled(&self, input: Input, hessian: &Hessian, replaced: &mut Replaced) -> Result<Scaled> {
        let diagonal = hessian.diagonal();
        let mut origin = fold::origin(self.spec, self.source, self.index, input, self.matrices);
        let mut factors = None;
        if origin.is_some() {
            let mut magnitudes: Vec<f32> = diagonal.iter().map(|v| v.sqrt()).collect();
            fold::share(self.spec, input, &mut magnitudes);
            let weights = self.readers(input).map(|matrix| matrix.values(self.source)).collect::<Result<Vec<_>>>()?;
            let readers = self.readers(input).zip(&weights);
            let readers: Vec<_> =
                readers.map(|(matrix, weights)| Reader { grid: self.grid(matrix), weights }).collect();
            factors = awq::search(self.cpu, &readers, hessian, &magnitudes);
        }
        if factors.is_none() {
            origin = None;
        }
        let mut factors = factors.unwrap_or_else(|| vec![1.0; diagonal.len()]);
        if let Some(Origin::Norm(name)) = &origin {
            fold::into_norm(self.spec, self.source, name, &mut factors, replaced);
        }
        Ok(Scaled { input, importance: awq::importance(&diagonal, &factors), factors, origin })
    }

    /// The chosen matrices that read an input.
    fn readers(&self, input: Input) -> impl Iterator<Item = &LayerMatrix> {
        self.matrices.iter().filter(move |m| m.input == input)
    }

    /// The values that the weights of a matrix can have.
    fn grid(&self, matrix: &LayerMatrix) -> Grid {
        let at = self.matrices.iter().position(|one| one.name == matrix.name).expect("it is one of them");
        Grid::of(matrix, self.bits[at], self.options)
    }
}

/// An input of AWQ.
struct Scaled {
    input: Input,
    /// What the weights of each value are multiplied with.
    factors: Vec<f32>,
    /// What an error of such a weight counts.
    importance: Vec<f32>,
    /// Where the values are divided by `factors`; none: these are 1.
    origin: Option<Origin>,
}

/// What GPTQ knows of an input.
pub(super) struct Feedback {
    /// Damped.
    pub hessian: Hessian,
    /// What an error of its weights counts, by value.
    pub importance: Vec<f32>,
    /// Its values, the most important first.
    pub order: Vec<usize>,
    /// Of the Hessian in that order.
    pub factor: Vec<f32>,
}

impl Feedback {
    pub fn new(hessian: Hessian, layer: usize) -> Result<Self> {
        let hessian = hessian.damped();
        let importance = hessian.diagonal();
        let mut order: Vec<usize> = (0..importance.len()).collect();
        order.sort_by(|&a, &b| importance[b].total_cmp(&importance[a]));
        let factor = hessian.reordered(&order).inverse_factor().ok_or_else(|| {
            let message = format!("the Hessian of layer {layer} cannot be factored: use more tokens, or rtn");
            Error::option("method", message)
        })?;
        Ok(Feedback { hessian, importance, order, factor })
    }
}
