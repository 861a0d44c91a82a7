//! Running a text through a model layer by layer: between layers only the residual stream of its tokens is kept, so that no
//! more than one layer's weights are wanted at a time.

use crate::backend::Cpu;
use crate::error::Result;
use crate::model::forward::{block, embed, logits, prepare_rows};
use crate::model::kv::KvCache;
use crate::model::{KvOptions, Model, PREFILL_ROWS, Row, Scratch};
use crate::sparsity::{Observer, Selector};

/// The residual stream of a text that is read in windows, each a sequence of its own.
pub(super) struct Stream<'a> {
    cpu: &'a Cpu,
    ids: &'a [u32],
    window: usize,
    hidden: usize,
    /// `[tokens, hidden]`.
    x: Vec<f32>,
    caches: Vec<KvCache>,
    scratch: Scratch,
}

/// What becomes of the residual stream.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum After {
    /// It is that after the layer from now on.
    Advance,
    /// It stays what it was before the layer.
    Stay,
}

impl<'a> Stream<'a> {
    /// Before the first layer.
    pub fn new(cpu: &'a Cpu, model: &Model, ids: &'a [u32], window: usize) -> Self {
        let hidden = model.spec.hidden_size;
        let caches = vec![KvCache::new(&model.spec, model.default_kv_dtype(), &KvOptions::default(), window)];
        let scratch = Scratch::new(&model.spec);
        let mut stream = Stream { cpu, ids, window, hidden, x: vec![0.0; ids.len() * hidden], caches, scratch };
        for (start, rows) in steps(ids, window) {
            let s = &mut stream.scratch;
            s.resize(rows.len());
            embed(model, cpu, &rows, s);
            stream.x[start * hidden..][..rows.len() * hidden].copy_from_slice(&s.x);
        }
        stream
    }

    /// Runs every window through a layer; `progress` is told how many tokens each step had.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn run(
        &mut self,
        model: &Model,
        layer: usize,
        observer: &mut dyn Observer,
        after: After,
        progress: &mut dyn FnMut(usize),
    ) -> Result<()> {
        for (start, rows) in steps(self.ids, self.window) {
            let s = &mut self.scratch;
            let x = &mut self.x[start * self.hidden..][..rows.len() * self.hidden];
            prepare_rows(model, self.cpu, &rows, s);
            s.x.copy_from_slice(x);
            block(model, self.cpu, &Selector::dense(), &mut self.caches, layer, &rows, s, observer)?;
            if after == After::Advance {
                x.copy_from_slice(&s.x);
            }
            progress(rows.len());
        }
        Ok(())
    }

    /// After the last layer: the logits that follow the tokens `range` of the text, `[tokens, vocab]`.
    pub fn logits(&mut self, model: &Model, range: std::ops::Range<usize>, out: &mut [f32]) {
        let (s, rows) = (&mut self.scratch, range.len());
        s.resize(rows);
        s.x.copy_from_slice(&self.x[range.start * self.hidden..range.end * self.hidden]);
        logits(model, self.cpu, s, 0..rows, out);
    }
}

/// The steps that a text is read in: where each begins, and its rows.
fn steps(ids: &[u32], window: usize) -> impl Iterator<Item = (usize, Vec<Row>)> {
    ids.chunks(window).enumerate().flat_map(move |(w, window_ids)| {
        window_ids.chunks(PREFILL_ROWS).enumerate().map(move |(c, chunk)| {
            let first = c * PREFILL_ROWS;
            let sequence_len = window_ids.len();
            let row = |(i, &token)| Row { token, sequence: 0, position: first + i, sequence_len };
            (w * window + first, chunk.iter().enumerate().map(row).collect())
        })
    })
}
