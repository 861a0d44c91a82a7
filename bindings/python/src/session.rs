//! Sequences that the caller advances: what a drop-in for transformers, scoring and profiles are made of.

use std::sync::{Mutex, MutexGuard};

use pyo3::prelude::*;
use pyo3::types::PyByteArray;
use sparrow::internals::run::check_ids;
use sparrow::internals::text::sample::logprobs;
use sparrow::session::Cancel;
use sparrow::{Error, SessionOptions};

use crate::errors::{exception, option};
use crate::guard::{cancel, check_caller, check_process, detached, lock};
use crate::model::Model;
use crate::options;

/// Sequences of a model. Calls of several threads take turns.
#[pyclass(frozen, module = "sparrow_llm._native")]
pub struct Session {
    model: Py<Model>,
    session: Mutex<sparrow::Session>,
    cancel: Cancel,
}

impl Session {
    /// Works with the session, without the interpreter's lock.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut sparrow::Session) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        check_caller(self)?;
        check_process(&self.model.get().loaded.cpu)?;
        detached(py, || work(&mut self.locked()).map_err(exception))
    }

    fn locked(&self) -> MutexGuard<'_, sparrow::Session> {
        let session = lock(&self.session);
        self.cancel.reset();
        session
    }

    fn has(session: &sparrow::Session, sequence: usize) -> Result<(), Error> {
        session.sequence_stats(sequence).map(drop)
    }
}

/// Logits as Python takes them, without a copy in between: float32 in the order of the machine.
fn bytes<'py>(py: Python<'py>, logits: &[f32]) -> PyResult<Bound<'py, PyByteArray>> {
    PyByteArray::new_with(py, size_of_val(logits), |bytes| {
        for (bytes, logit) in bytes.chunks_exact_mut(4).zip(logits) {
            bytes.copy_from_slice(&logit.to_ne_bytes());
        }
        Ok(())
    })
}

#[pymethods]
impl Session {
    #[new]
    #[pyo3(signature = (model, *, kv_dtype=None, kv_sparsity=None, kv_dense_tail=None, kv_sinks=None))]
    fn new(
        py: Python<'_>,
        model: Py<Model>,
        kv_dtype: Option<&str>,
        kv_sparsity: Option<&str>,
        kv_dense_tail: Option<usize>,
        kv_sinks: Option<usize>,
    ) -> PyResult<Self> {
        let kv = options::kv(kv_dtype, kv_sparsity, kv_dense_tail, kv_sinks)?;
        let loaded = &model.get().loaded;
        check_process(&loaded.cpu)?;
        let cancel = cancel();
        let session = detached(py, || {
            let mut session = loaded.session(SessionOptions { sequences: 0, capacity: 0, kv }).map_err(exception)?;
            session.set_cancel(cancel.clone());
            Ok(Mutex::new(session))
        })?;
        Ok(Session { model, session, cancel })
    }

    fn add_sequence(&self, py: Python<'_>, capacity: usize) -> PyResult<usize> {
        self.with(py, |session| session.add_sequence(capacity))
    }

    fn remove_sequence(&self, py: Python<'_>, sequence: usize) -> PyResult<()> {
        self.with(py, |session| session.remove_sequence(sequence).map(drop))
    }

    fn grow(&self, py: Python<'_>, sequence: usize, capacity: usize) -> PyResult<()> {
        self.with(py, |session| session.grow(sequence, capacity))
    }

    fn length(&self, py: Python<'_>, sequence: usize) -> PyResult<usize> {
        self.with(py, |session| Self::has(session, sequence).map(|()| session.len(sequence)))
    }

    fn capacity(&self, py: Python<'_>, sequence: usize) -> PyResult<usize> {
        self.with(py, |session| Self::has(session, sequence).map(|()| session.capacity(sequence)))
    }

    fn tokens(&self, py: Python<'_>, sequence: usize) -> PyResult<Vec<u32>> {
        self.with(py, |session| Self::has(session, sequence).map(|()| session.tokens(sequence).to_vec()))
    }

    fn truncate(&self, py: Python<'_>, sequence: usize, length: usize) -> PyResult<()> {
        self.with(py, |session| session.truncate(sequence, length))
    }

    fn copy_prefix(&self, py: Python<'_>, source: usize, target: usize, length: usize) -> PyResult<()> {
        self.with(py, |session| session.copy_prefix(source, target, length))
    }

    fn reorder(&self, py: Python<'_>, order: Vec<usize>) -> PyResult<()> {
        self.with(py, |session| session.reorder(&order))
    }

    fn prefill<'py>(&self, py: Python<'py>, sequence: usize, ids: Vec<u32>) -> PyResult<Bound<'py, PyByteArray>> {
        let logits = self.with(py, |session| session.prefill(sequence, &ids).map(<[f32]>::to_vec))?;
        bytes(py, &logits)
    }

    fn prefill_all<'py>(&self, py: Python<'py>, sequence: usize, ids: Vec<u32>) -> PyResult<Bound<'py, PyByteArray>> {
        let logits = self.with(py, |session| {
            let mut all = Vec::with_capacity(ids.len() * session.model().spec.vocab_size);
            session.prefill_each(sequence, &ids, &mut (), |_, logits| {
                all.extend_from_slice(logits);
                Ok(())
            })?;
            Ok(all)
        })?;
        bytes(py, &logits)
    }

    fn decode<'py>(&self, py: Python<'py>, tokens: Vec<(usize, u32)>) -> PyResult<Bound<'py, PyByteArray>> {
        let logits = self.with(py, |session| session.decode(&tokens).map(<[f32]>::to_vec))?;
        bytes(py, &logits)
    }

    /// Appends a context of at least one token and what goes on after it, but for the last token, which nothing is asked after; what
    /// the model thought of each token that goes on: its log-probability, and whether it was the most likely one.
    fn score(
        &self,
        py: Python<'_>,
        sequence: usize,
        context: Vec<u32>,
        continuation: Vec<u32>,
    ) -> PyResult<Vec<(f32, bool)>> {
        let vocab = self.model.get().loaded.model.spec.vocab_size;
        let Some((&last, before)) = context.split_last() else {
            return Err(option("context", "must have at least one token"));
        };
        self.with(py, |session| {
            check_ids(&continuation, vocab)?;
            // Logits of the context are wanted of its last token alone.
            if !before.is_empty() {
                session.prefill(sequence, before)?;
            }
            let before_last = continuation.len().saturating_sub(1);
            let ids: Vec<u32> = std::iter::once(last).chain(continuation[..before_last].iter().copied()).collect();
            let mut scores = Vec::with_capacity(continuation.len());
            session.prefill_each(sequence, &ids, &mut (), |i, logits| {
                scores.extend(continuation.get(i).map(|&id| {
                    let sampled = logprobs(logits, id, 1);
                    (sampled.logprob, sampled.top.first().is_some_and(|best| best.token == id))
                }));
                Ok(())
            })?;
            Ok(scores)
        })
    }

    fn reset_stats(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |session| {
            session.reset_stats();
            Ok(())
        })
    }

    fn active_fraction(&self, py: Python<'_>) -> PyResult<f64> {
        self.with(py, |session| Ok(session.stats().active_fraction()))
    }

    fn start_profile(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |session| {
            session.start_profile();
            Ok(())
        })
    }

    /// Component, and mean, standard deviation, minimum and maximum of its seconds per call.
    fn profile(&self, py: Python<'_>) -> PyResult<Vec<(&'static str, [f64; 4])>> {
        self.with(py, |session| {
            let rows = session.profile().into_iter();
            Ok(rows.map(|(component, t)| (component.name(), [t.mean, t.std, t.min, t.max])).collect())
        })
    }

    /// Stops the call that is running, which raises `Cancelled`.
    fn cancel(&self) {
        self.cancel.cancel();
    }
}
