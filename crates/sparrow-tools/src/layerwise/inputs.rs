//! What must be known of the inputs of a layer's matrices, summed up over the calibration text.

use sparrow::internals::backend::{ActiveNeurons, Observer, Point};
use sparrow::internals::spec::ModelSpec;
use sparrow::{Cpu, Error, Result};
use sparrow_linalg::{View, ViewMut, add_product};

use super::hessian::Hessian;
use super::matrices::{Input, LayerMatrix};

/// Rows of a Hessian, and inputs, that are summed together: the sums do not depend on the number of threads.
const TILE: usize = 128;

/// What is kept of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Nothing: the text need not be read.
    Nothing,
    /// The squares of its values.
    Squares,
    /// The products of its values with each other.
    Products,
}

/// Sums over the tokens of what enters a matrix.
enum Sums {
    /// Of squares, `[n]`.
    Squares(Vec<f64>),
    /// Of products, `[n, n]`, of which the upper triangle counts.
    Products(Vec<f32>),
}

/// Sums up the inputs of one layer's matrices; see [`Input::ALL`] for the order.
pub(crate) struct LayerInputs<'a> {
    cpu: &'a Cpu,
    layer: usize,
    sums: [Option<Sums>; 4],
}

impl<'a> LayerInputs<'a> {
    /// What is to be kept of the inputs of these matrices.
    pub fn new(cpu: &'a Cpu, spec: &ModelSpec, layer: usize, kept: Kept, matrices: &[LayerMatrix]) -> Self {
        let sums = Input::ALL.map(|input| {
            let n = input.width(spec);
            match kept {
                _ if matrices.iter().all(|m| m.input != input) => None,
                Kept::Nothing => None,
                Kept::Squares => Some(Sums::Squares(vec![0.0; n])),
                Kept::Products => Some(Sums::Products(vec![0.0; n * n])),
            }
        });
        LayerInputs { cpu, layer, sums }
    }

    /// `‖x_j‖₂` of each value of `input`, `[n]`; none if no squares were kept. The sums are given up.
    ///
    /// # Errors
    /// If activations were not finite.
    pub fn norms(&mut self, input: Input) -> Result<Option<Vec<f32>>> {
        let Some(Sums::Squares(sums)) = self.sums[input as usize].take_if(|s| matches!(s, Sums::Squares(_))) else {
            return Ok(None);
        };
        let norms: Vec<f32> = sums.iter().map(|sum| sum.sqrt() as f32).collect();
        self.require_finite(&norms)?;
        Ok(Some(norms))
    }

    /// The products of the values of `input`; none if none were kept. The sums are given up.
    ///
    /// # Errors
    /// If activations were not finite.
    pub fn hessian(&mut self, input: Input) -> Result<Option<Hessian>> {
        let Some(Sums::Products(products)) = self.sums[input as usize].take_if(|s| matches!(s, Sums::Products(_)))
        else {
            return Ok(None);
        };
        let n = products.len().isqrt();
        let hessian = Hessian::new(products, n);
        self.require_finite(&hessian.diagonal())?;
        Ok(Some(hessian))
    }

    fn require_finite(&self, values: &[f32]) -> Result<()> {
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(()),
            false => {
                let message = format!("the activations of layer {} are not finite on this text", self.layer);
                Err(Error::option("text", message))
            }
        }
    }

    fn add(&mut self, input: Input, x: &[f32], m: usize) {
        let n = x.len() / m;
        match &mut self.sums[input as usize] {
            None => {}
            Some(Sums::Squares(sums)) => self.cpu.compute.pool().for_chunks(sums, TILE, &|i, sums| {
                for row in x.chunks_exact(n) {
                    let row = &row[i * TILE..][..sums.len()];
                    sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v) * f64::from(v));
                }
            }),
            Some(Sums::Products(products)) => self.cpu.compute.pool().for_chunks(products, TILE * n, &|i, products| {
                let (first, rows) = (i * TILE, products.len() / n);
                let left = View::strided(&x[first..], m, rows, n).transposed();
                let right = View::strided(&x[first..], m, n - first, n);
                add_product(1.0, left, right, ViewMut::strided(&mut products[first..], rows, n - first, n));
            }),
        }
    }
}

impl Observer for LayerInputs<'_> {
    fn see(&mut self, _: usize, point: Point, values: &[f32], m: usize) {
        match point {
            Point::AttentionInput => self.add(Input::Attention, values, m),
            Point::Attended => self.add(Input::Output, values, m),
            Point::Neurons => self.add(Input::Down, values, m),
            Point::Residual | Point::MiddleResidual => {}
        }
    }

    fn mlp(&mut self, _: usize, h: &[f32], m: usize, _: Option<ActiveNeurons>) {
        self.add(Input::Mlp, h, m);
    }
}
