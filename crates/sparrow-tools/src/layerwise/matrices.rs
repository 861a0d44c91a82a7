//! Which tensors are changed, and what each of them reads.

use glob::Pattern;
use sparrow::internals::checkpoint::Checkpoint;
use sparrow::internals::spec::ModelSpec;
use sparrow::internals::spec::names::TensorNames;
use sparrow::internals::tensor::Tensor;
use sparrow::{Error, Result};
use sparrow_kernels::{DType, decode};

/// What enters a matrix: matrices that share an input share its statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// Of queries, keys and values.
    Attention,
    /// Of attention's output projection.
    Output,
    /// Of gate and up.
    Mlp,
    /// Of the down projection.
    Down,
}

impl Input {
    /// In the order a layer computes them.
    pub const ALL: [Input; 4] = [Input::Attention, Input::Output, Input::Mlp, Input::Down];

    /// Values per token.
    pub fn width(self, spec: &ModelSpec) -> usize {
        match self {
            Input::Attention | Input::Mlp => spec.hidden_size,
            Input::Output => spec.q_size(),
            Input::Down => spec.intermediate_size,
        }
    }
}

/// A matrix that is to be changed, `[out, in]`.
#[derive(Debug, Clone)]
pub(crate) struct LayerMatrix {
    pub name: String,
    pub input: Input,
    pub dtype: DType,
    pub rows: usize,
    pub cols: usize,
}

impl LayerMatrix {
    /// Its weights in the checkpoint that it was found in.
    ///
    /// # Errors
    /// If they must be decoded and the memory cannot be had.
    pub fn weights(&self, checkpoint: &Checkpoint) -> Result<Tensor> {
        let info = checkpoint.info(&self.name).expect("it was found there");
        Ok(checkpoint.tensor(&info)?.expect("it was found to be a matrix"))
    }

    /// The same as numbers, `[rows, cols]`.
    ///
    /// # Errors
    /// As [`weights`](Self::weights).
    pub fn values(&self, checkpoint: &Checkpoint) -> Result<Vec<f32>> {
        let (weights, mut values) = (self.weights(checkpoint)?, vec![0.0; self.rows * self.cols]);
        for (r, row) in values.chunks_exact_mut(self.cols).enumerate() {
            decode(self.dtype, weights.matrix().row(r), row);
        }
        Ok(values)
    }

    /// # Errors
    /// As [`weights`](Self::weights), or if a weight is not finite: it can be neither compared nor rounded.
    pub fn require_finite(&self, checkpoint: &Checkpoint) -> Result<()> {
        let (weights, mut row) = (self.weights(checkpoint)?, vec![0.0; self.cols]);
        for r in 0..self.rows {
            decode(self.dtype, weights.matrix().row(r), &mut row);
            if let Some(c) = row.iter().position(|w| !w.is_finite()) {
                return Err(Error::Tensor {
                    path: checkpoint.dir().to_owned(),
                    tensor: self.name.clone(),
                    expected: "finite weights".into(),
                    found: format!("{} in row {r}, column {c}", row[c]),
                });
            }
        }
        Ok(())
    }
}

/// The parts of a layer that are matrices, and what each reads.
fn parts(names: &TensorNames) -> [(&'static str, Input); 9] {
    let [q, k, v] = names.qkv;
    [
        (q, Input::Attention),
        (k, Input::Attention),
        (v, Input::Attention),
        (names.fused_qkv, Input::Attention),
        (names.output, Input::Output),
        (names.gate, Input::Mlp),
        (names.up, Input::Mlp),
        (names.fused_gate_up, Input::Mlp),
        (names.down, Input::Down),
    ]
}

/// Which matrices are wanted, and what for.
pub(crate) struct Choice<'a> {
    /// Patterns of names; none: every matrix of the decoder layers.
    pub include: &'a [String],
    /// Patterns of the names of those to leave as they are.
    pub exclude: &'a [String],
    /// What is done to them, as a verb.
    pub verb: &'static str,
    /// What to do about a model that has none.
    pub mend: &'static str,
}

/// The matrices of every decoder layer that are wanted.
///
/// # Errors
/// If a pattern is malformed or fits no matrix, or nothing is left.
pub(crate) fn choose(spec: &ModelSpec, checkpoint: &Checkpoint, choice: &Choice) -> Result<Vec<Vec<LayerMatrix>>> {
    let mut layers: Vec<Vec<LayerMatrix>> =
        (0..spec.num_layers).map(|l| layer_matrices(&spec.names, checkpoint, l)).collect();
    let Some(LayerMatrix { name: example, .. }) = layers.iter().flatten().next().cloned() else {
        let message = format!("has no matrix that is stored as plain numbers: {}", choice.mend);
        return Err(Error::option("model", message));
    };
    let include = patterns("include", choice.include, &layers, &example)?;
    let exclude = patterns("exclude", choice.exclude, &layers, &example)?;
    let fits = |patterns: &[Pattern], name: &str| patterns.iter().any(|p| p.matches(name));
    for layer in &mut layers {
        layer.retain(|t| (include.is_empty() || fits(&include, &t.name)) && !fits(&exclude, &t.name));
    }
    if layers.iter().all(Vec::is_empty) {
        return Err(Error::option("exclude", format!("leaves nothing to {}", choice.verb)));
    }
    Ok(layers)
}

/// Every matrix of a layer.
pub(crate) fn layer_matrices(names: &TensorNames, checkpoint: &Checkpoint, layer: usize) -> Vec<LayerMatrix> {
    let found = parts(names).into_iter().filter_map(|(part, input)| {
        let name = format!("{}.weight", names.layer(layer, part));
        let (dtype, [rows, cols]) = checkpoint.info(&name)?.matrix()?;
        Some(LayerMatrix { name, input, dtype, rows, cols })
    });
    found.collect()
}

fn patterns(
    option: &'static str,
    texts: &[String],
    layers: &[Vec<LayerMatrix>],
    example: &str,
) -> Result<Vec<Pattern>> {
    let parse = |text: &String| {
        let pattern = Pattern::new(text).map_err(|e| Error::option(option, format!("{text:?} is no pattern: {e}")))?;
        if !layers.iter().flatten().any(|t| pattern.matches(&t.name)) {
            let message = format!("{text:?} fits no matrix of the decoder layers; one is called {example}");
            return Err(Error::option(option, message));
        }
        Ok(pattern)
    };
    texts.iter().map(parse).collect()
}
