//! Strings and keyword arguments as options of the library.

use std::fmt::Display;
use std::str::FromStr;

use pyo3::prelude::*;
use sparrow::{DType, KvOptions, KvSparsity};

use crate::errors::option;

/// An option by its written form.
pub fn parse<T: FromStr<Err: Display>>(name: &str, text: Option<&str>) -> PyResult<Option<T>> {
    text.map(|text| text.parse().map_err(|error| option(name, error))).transpose()
}

/// How keys and values are cached.
pub fn kv(
    dtype: Option<&str>,
    sparsity: Option<&str>,
    dense_tail: Option<usize>,
    sinks: Option<usize>,
) -> PyResult<KvOptions> {
    let default = KvOptions::default();
    let dtype: Option<DType> = parse("kv_dtype", dtype)?;
    if dtype.is_some_and(|dtype| !DType::CACHES.contains(&dtype)) {
        return Err(option("kv_dtype", "must be f32, f16, bf16 or int8"));
    }
    let sparsity: Option<KvSparsity> = parse("kv_sparsity", sparsity)?;
    Ok(KvOptions {
        dtype,
        sparsity,
        dense_tail: dense_tail.unwrap_or(default.dense_tail),
        sinks: sinks.unwrap_or(default.sinks),
    })
}
