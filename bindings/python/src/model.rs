//! A loaded model and its tokenizer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use sparrow::internals::checkpoint::ModelFiles;
use sparrow::internals::checkpoint::config::read_suggested_sampling;
use sparrow::internals::text::chat::{ChatTemplate, Conversation, TurnEnd, Value};
use sparrow::{Cpu, DType, Load, Loaded, Placement, SelectorSpec, Tokenizer, WeightsFormat};

use crate::errors::{exception, named, option};
use crate::guard::{detached, lock, reporter};
use crate::options::parse;

/// Threads that models of this process share, by their number.
static CPUS: Mutex<Vec<Weak<Cpu>>> = Mutex::new(Vec::new());

/// The threads that other models of as many use, or new ones.
pub fn cpu(threads: Option<usize>) -> Arc<Cpu> {
    let wanted = threads.unwrap_or_else(sparrow_kernels::default_threads);
    let mut cpus = lock(&CPUS);
    cpus.retain(|cpu| cpu.strong_count() > 0);
    let usable = |cpu: &Arc<Cpu>| cpu.compute.threads() == wanted && !cpu.compute.is_forked();
    cpus.iter().filter_map(Weak::upgrade).find(usable).unwrap_or_else(|| {
        let cpu = Arc::new(Cpu::new(Some(wanted)));
        cpus.push(Arc::downgrade(&cpu));
        cpu
    })
}

/// Name of the instruction set tier whose kernels run.
#[pyfunction]
pub fn isa() -> String {
    cpu(Some(1)).compute.isa().to_string()
}

/// Threads that the system lets this process use.
#[pyfunction]
pub fn default_threads() -> usize {
    sparrow_kernels::default_threads()
}

/// A model that is ready to run.
#[pyclass(frozen, module = "sparrow_llm._native")]
pub struct Model {
    pub loaded: Loaded,
}

impl Model {
    pub fn tokenizer(&self) -> PyResult<&Arc<Tokenizer>> {
        self.loaded.tokenizer().map_err(exception)
    }
}

fn json<T: serde::de::DeserializeOwned>(name: &str, text: &str) -> PyResult<T> {
    serde_json::from_str(text).map_err(|error| option(name, error))
}

#[pymethods]
impl Model {
    #[staticmethod]
    #[pyo3(signature = (source, *, dtype=None, selector=None, weights=None, weights_format=None, threads=None, progress=None))]
    #[expect(clippy::too_many_arguments, reason = "they are keyword arguments")]
    fn load(
        py: Python<'_>,
        source: &str,
        dtype: Option<&str>,
        selector: Option<&str>,
        weights: Option<&str>,
        weights_format: Option<&str>,
        threads: Option<usize>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let dtype: Option<DType> = parse("dtype", dtype)?;
        let selector: Option<SelectorSpec> = parse("selector", selector)?;
        let placement: Option<Placement> = parse("weights", weights)?;
        let format: Option<WeightsFormat> = parse("weights_format", weights_format)?;
        detached(py, || {
            let load = Load::new(source)
                .dtype(dtype)
                .selector(selector)
                .weights(placement.unwrap_or_default())
                .format(format.unwrap_or_default())
                .cpu(cpu(threads));
            let mut report = reporter(progress.as_ref());
            let loaded = load.open(|stage, done, total| report(stage.name(), done, total)).map_err(exception)?;
            Ok(Model { loaded })
        })
    }

    #[getter]
    fn directory(&self) -> Option<String> {
        self.loaded.model.dir.as_ref().map(|dir| dir.display().to_string())
    }

    #[getter]
    fn architecture(&self) -> String {
        self.loaded.model.spec.architecture.to_string()
    }

    /// `config.json`, or what a GGUF file has of it.
    fn config(&self) -> PyResult<String> {
        let config = self.files()?.map(|files| files.json("config.json").map_err(exception)).transpose()?.flatten();
        Ok(config.unwrap_or_else(|| serde_json::json!({})).to_string())
    }

    #[getter]
    fn selector(&self) -> String {
        self.loaded.selector_spec.to_string()
    }

    #[getter]
    fn dtype(&self) -> String {
        self.loaded.model.weights.dtypes()
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.loaded.model.spec.vocab_size
    }

    #[getter]
    fn context_length(&self) -> usize {
        self.loaded.model.spec.context_length()
    }

    #[getter]
    fn num_layers(&self) -> usize {
        self.loaded.model.spec.num_layers
    }

    #[getter]
    fn hidden_size(&self) -> usize {
        self.loaded.model.spec.hidden_size
    }

    #[getter]
    fn eos_token_ids(&self) -> Vec<u32> {
        self.loaded.model.generation.eos_token_ids.clone()
    }

    #[getter]
    fn threads(&self) -> usize {
        self.loaded.cpu.compute.threads()
    }

    #[getter]
    fn isa(&self) -> String {
        self.loaded.cpu.compute.isa().to_string()
    }

    #[getter]
    fn has_tokenizer(&self) -> bool {
        self.loaded.tokenizer().is_ok()
    }

    /// Sampling parameters that the model's files suggest, those that they do.
    fn suggested_sampling<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let suggested = match self.files()? {
            Some(files) => read_suggested_sampling(&files).map_err(exception)?,
            None => Default::default(),
        };
        let dict = PyDict::new(py);
        let floats = [
            ("temperature", suggested.temperature),
            ("top_p", suggested.top_p),
            ("min_p", suggested.min_p),
            ("repetition_penalty", suggested.repetition_penalty),
        ];
        for (name, value) in floats {
            value.map(|value| dict.set_item(name, value)).transpose()?;
        }
        suggested.top_k.map(|value| dict.set_item("top_k", value)).transpose()?;
        Ok(dict)
    }

    fn encode(&self, py: Python<'_>, text: &str, add_special_tokens: bool) -> PyResult<Vec<u32>> {
        let tokenizer = self.tokenizer()?;
        detached(py, || tokenizer.encode(text, add_special_tokens).map_err(exception))
    }

    fn decode(&self, py: Python<'_>, ids: Vec<u32>, skip_special_tokens: bool) -> PyResult<String> {
        let tokenizer = self.tokenizer()?;
        detached(py, || match skip_special_tokens {
            true => tokenizer.decode(&ids).map_err(exception),
            false => tokenizer.decode_with_special(&ids).map_err(exception),
        })
    }

    fn token(&self, id: u32) -> PyResult<Option<String>> {
        Ok(self.tokenizer()?.id_to_token(id))
    }

    /// The prompt of a conversation, and the token or the text that ends its answer.
    #[pyo3(signature = (messages, tools=None, template=None, variables=None))]
    fn chat_prompt(
        &self,
        py: Python<'_>,
        messages: &str,
        tools: Option<&str>,
        template: Option<&str>,
        variables: Option<&str>,
    ) -> PyResult<(Vec<u32>, Option<u32>, Option<String>)> {
        let tokenizer = self.tokenizer()?;
        detached(py, || {
            let template = match (template, self.files()?) {
                (Some(file), _) => Some(ChatTemplate::read_file(file.as_ref(), tokenizer).map_err(exception)?),
                (None, Some(files)) => ChatTemplate::read(&files, tokenizer).map_err(exception)?,
                (None, None) => None,
            };
            let template = template.ok_or_else(|| {
                let message = "the model has no chat template, so it does not say how to talk to it: \
                               continue a text with generate, or pass chat_template=FILE";
                named("TemplateError", message)
            })?;
            let variables: BTreeMap<String, Value> = variables.map_or(Ok(BTreeMap::new()), |v| json("variables", v))?;
            let conversation = Conversation {
                messages: json("messages", messages)?,
                tools: tools.map(|tools| json("tools", tools)).transpose()?,
                add_generation_prompt: true,
                variables: variables.into_iter().collect(),
                ..Conversation::default()
            };
            let prompt = template.encode(tokenizer, &conversation).map_err(exception)?;
            Ok(match template.turn_end(tokenizer) {
                TurnEnd::Token(id) => (prompt, Some(id), None),
                TurnEnd::Text(text) => (prompt, None, Some(text)),
                TurnEnd::Nothing => (prompt, None, None),
            })
        })
    }
}

impl Model {
    fn files(&self) -> PyResult<Option<ModelFiles>> {
        self.loaded.model.dir.as_ref().map(|dir| ModelFiles::open(dir).map_err(exception)).transpose()
    }
}
