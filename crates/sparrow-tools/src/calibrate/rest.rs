//! What a model predicts from the middle of it on, on a few tokens.

use std::sync::Mutex;

use sparrow::internals::backend::{Backend, Observer};
use sparrow::internals::run::{After, LayerStream, Run};
use sparrow::{Cpu, Model, Result, Selector};
use sparrow_kernels::DType;

use crate::eval::{kl_divergence, log_softmax};

/// The layers of a model from one of them on, and its head.
pub(crate) struct Rest<'a> {
    pub cpu: &'a Cpu,
    pub model: &'a Model,
    /// Tokens that are read together.
    pub window: usize,
    pub layer: usize,
}

impl Rest<'_> {
    /// Log-probabilities, `[tokens, vocab]`, where `selector` thins the first of the layers and all after it are dense. `x` is the
    /// residual stream before them, `[tokens, hidden]`.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn run(&self, x: &[f32], selector: &Selector, observer: &mut dyn Observer) -> Result<Vec<f32>> {
        let Rest { cpu, model, window, layer } = *self;
        let mut stream = LayerStream::from_residual(cpu, model, x, window, DType::F32)?;
        let run = Run { model, layer, selector, after: After::Advance };
        stream.run(&run, observer, |_, _| ())?;
        for layer in layer + 1..model.spec.num_layers {
            stream.run(&Run { layer, selector: &Selector::dense(), ..run }, &mut (), |_, _| ())?;
        }
        let (tokens, vocab) = (x.len() / model.spec.hidden_size, model.spec.vocab_size);
        let mut log_p = vec![0.0; tokens * vocab];
        stream.logits(model, 0..tokens, &mut log_p)?;
        let rows: Vec<_> = log_p.chunks_exact_mut(vocab).map(Mutex::new).collect();
        cpu.parallel(tokens, &|i| log_softmax(&mut rows[i].lock().expect("each is locked once")));
        drop(rows);
        Ok(log_p)
    }
}

/// The mean over tokens of KL(reference ‖ other), both log-probabilities `[tokens, vocab]`.
pub(crate) fn divergence(cpu: &Cpu, vocab: usize, reference: &[f32], other: &[f32]) -> f64 {
    let tokens = reference.chunks_exact(vocab).zip(other.chunks_exact(vocab));
    let rows: Vec<_> = tokens.map(|(reference, other)| Mutex::new((reference, other, 0.0))).collect();
    cpu.parallel(rows.len(), &|i| {
        let (reference, other, found) = &mut *rows[i].lock().expect("each is locked once");
        *found = kl_divergence(reference, other);
    });
    let tokens = rows.len() as f64;
    rows.into_iter().map(|row| row.into_inner().expect("each was locked once").2).sum::<f64>() / tokens
}
