//! Running a text through a model layer by layer: between layers only the residual stream of its tokens is kept, so that no
//! more than one layer's weights are wanted at a time. For tools that change or measure single layers.

use std::ops::Range;

use super::forward::{Pass, State, block};
use super::session::PREFILL_ROWS;
use crate::DType;
use crate::backend::{Backend, KvOptions, Meter, Observer, Row, Setup, Step};
use crate::error::Result;
use crate::model::Model;
use crate::residency::Placement;
use crate::select::Selector;

/// The residual stream of a text that is read in windows, each a sequence of its own.
pub struct LayerStream<'a, B: Backend> {
    backend: &'a B,
    window: usize,
    hidden: usize,
    /// The steps that the text is read in: where each begins, and its rows.
    steps: Vec<(usize, Vec<Row>)>,
    /// `[tokens, hidden]`.
    x: Vec<f32>,
    kvs: Vec<B::Kv>,
    workspace: B::Workspace,
    meter: Meter,
}

/// What becomes of the residual stream.
#[derive(Clone, Copy, PartialEq)]
pub enum After {
    /// It is that after the layer from now on.
    Advance,
    /// It stays what it was before the layer.
    Stay,
}

/// A layer to run, and how.
pub struct Run<'a> {
    /// The model.
    pub model: &'a Model,
    /// Which layer.
    pub layer: usize,
    /// What is left out; no neurons.
    pub selector: &'a Selector,
    /// What becomes of the residual stream.
    pub after: After,
}

impl<'a, B: Backend> LayerStream<'a, B> {
    /// Before the first layer, with the model's usual cache.
    ///
    /// # Errors
    /// If the backend has no room.
    pub fn new(backend: &'a B, model: &Model, ids: &[u32], window: usize) -> Result<Self> {
        let hidden = model.spec.hidden_size;
        let x = vec![0.0; ids.len() * hidden];
        let mut stream = Self::of(backend, model, steps(ids, window), x, (window, model.default_kv_dtype()))?;
        let weights = backend.place(&model.spec, &model.weights)?;
        for (start, rows) in &stream.steps {
            stream.meter.begin(rows.len());
            let mut step = Step { rows, before: 0, observer: &mut (), meter: &mut stream.meter };
            backend.begin(&model.spec, &step, &mut stream.workspace);
            backend.embed(&model.spec, &weights, &mut step, &mut stream.workspace);
            let x = &mut stream.x[start * hidden..][..rows.len() * hidden];
            x.copy_from_slice(&backend.residual(&stream.workspace));
        }
        Ok(stream)
    }

    /// In the middle of a model, where the residual stream of tokens, in windows, is `x`, `[tokens, hidden]`.
    ///
    /// # Errors
    /// If the backend has no room.
    pub fn from_residual(backend: &'a B, model: &Model, x: &[f32], window: usize, kv_dtype: DType) -> Result<Self> {
        let tokens = x.len() / model.spec.hidden_size;
        Self::of(backend, model, steps(&vec![0; tokens], window), x.to_vec(), (window, kv_dtype))
    }

    fn of(
        backend: &'a B,
        model: &Model,
        steps: Vec<(usize, Vec<Row>)>,
        x: Vec<f32>,
        (window, kv_dtype): (usize, DType),
    ) -> Result<Self> {
        let spec = &model.spec;
        let setup = Setup { spec, placement: Placement::Mapped, scorer: None, rows: 1 };
        let weights = backend.place(spec, &model.weights)?;
        Ok(LayerStream {
            window,
            hidden: spec.hidden_size,
            steps,
            x,
            kvs: vec![backend.kv(spec, kv_dtype, &KvOptions::default(), window)?],
            workspace: backend.workspace(&setup, &weights)?,
            meter: Meter::new(spec.num_layers, PREFILL_ROWS),
            backend,
        })
    }

    /// Tokens of a window.
    pub fn window(&self) -> usize {
        self.window
    }

    /// The residual stream, `[tokens, hidden]`.
    pub fn residual(&self) -> &[f32] {
        &self.x
    }

    /// Runs every window through a layer and hands the residual stream after each step to `each(tokens before, x)`.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn run(&mut self, run: &Run, observer: &mut dyn Observer, mut each: impl FnMut(usize, &[f32])) -> Result<()> {
        let Run { model, layer, selector, after } = *run;
        let weights = self.backend.place(&model.spec, &model.weights)?;
        let pass = Pass { backend: self.backend, spec: &model.spec, weights: &weights, selector };
        for (start, rows) in &self.steps {
            let x = &mut self.x[start * self.hidden..][..rows.len() * self.hidden];
            self.meter.begin(rows.len());
            let mut step = Step { rows, before: 0, observer, meter: &mut self.meter };
            self.backend.begin(&model.spec, &step, &mut self.workspace);
            self.backend.set_residual(&mut self.workspace, x);
            let mut state = State { kvs: &mut self.kvs, workspace: &mut self.workspace, selection: None };
            block(&pass, layer, &mut state, &mut step)?;
            let now = self.backend.residual(&self.workspace);
            if after == After::Advance {
                x.copy_from_slice(&now);
            }
            each(rows.len(), &now);
        }
        Ok(())
    }

    /// After the last layer: the logits that follow the tokens `range` of the text, `[tokens, vocab]`.
    ///
    /// # Errors
    /// If the backend has no room.
    pub fn logits(&mut self, model: &Model, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let weights = self.backend.place(&model.spec, &model.weights)?;
        let rows = vec![Row { token: 0, sequence: 0, position: 0, sequence_len: 1 }; range.len()];
        self.meter.begin(rows.len());
        let step = Step { rows: &rows, before: 0, observer: &mut (), meter: &mut self.meter };
        self.backend.begin(&model.spec, &step, &mut self.workspace);
        let x = &self.x[range.start * self.hidden..range.end * self.hidden];
        self.backend.set_residual(&mut self.workspace, x);
        let rows: Vec<usize> = (0..range.len()).collect();
        self.backend.head(&model.spec, &weights, &rows, &mut self.workspace, out);
        Ok(())
    }
}

fn steps(ids: &[u32], window: usize) -> Vec<(usize, Vec<Row>)> {
    let windows = ids.chunks(window).enumerate().flat_map(|(w, window_ids)| {
        window_ids.chunks(PREFILL_ROWS).enumerate().map(move |(c, chunk)| {
            let first = c * PREFILL_ROWS;
            let sequence_len = window_ids.len();
            let row = |(i, &token)| Row { token, sequence: 0, position: first + i, sequence_len };
            (w * window + first, chunk.iter().enumerate().map(row).collect())
        })
    });
    windows.collect()
}
