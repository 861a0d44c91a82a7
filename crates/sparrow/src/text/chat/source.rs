//! Where a model's chat template is, in the order in which transformers looks.

use std::path::PathBuf;

use serde_json::Value;

use crate::checkpoint::ModelFiles;
use crate::error::{Error, Result};

/// A template and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub path: PathBuf,
    pub text: String,
}

/// The template of a model, and the one for conversations with tools where that is another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    pub default: Source,
    pub tool_use: Option<Source>,
}

/// The templates among the files of a model; none if it has none.
///
/// # Errors
/// If a file that should have one cannot be read, or has something else.
pub fn find(files: &ModelFiles) -> Result<Option<Sources>> {
    if let Some(default) = file(files, "chat_template.jinja")? {
        return Ok(Some(Sources { default, tool_use: file(files, "additional_chat_templates/tool_use.jinja")? }));
    }
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let json = files.json(name)?.unwrap_or_default();
        if let Some(value) = json.get("chat_template").filter(|value| !value.is_null()) {
            return in_json(files.path_of(name), value).map(Some);
        }
    }
    Ok(None)
}

fn file(files: &ModelFiles, name: &str) -> Result<Option<Source>> {
    let Some(bytes) = files.read(name)? else { return Ok(None) };
    let path = files.path_of(name);
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(Source { path, text })),
        Err(e) => Err(Error::config(&path, format!("is no text: {e}"))),
    }
}

/// A string, or a list of `{"name": …, "template": …}`.
fn in_json(path: PathBuf, value: &Value) -> Result<Sources> {
    let source = |text: &str| Source { path: path.clone(), text: text.to_owned() };
    if let Some(text) = value.as_str() {
        return Ok(Sources { default: source(text), tool_use: None });
    }
    let expected =
        || Error::config(&path, "field chat_template must be a string or a list of {\"name\", \"template\"}");
    let mut named = Vec::new();
    for entry in value.as_array().ok_or_else(expected)? {
        let text = |field| entry.get(field).and_then(Value::as_str).ok_or_else(expected);
        named.push((text("name")?, text("template")?));
    }
    let by_name = |wanted| named.iter().find(|(name, _)| *name == wanted).map(|(_, text)| source(text));
    let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
    let none = || {
        let message = format!(
            "field chat_template has no template named \"default\", only {names:?}: pass one with --chat-template"
        );
        Error::config(&path, message)
    };
    Ok(Sources { default: by_name("default").ok_or_else(none)?, tool_use: by_name("tool_use") })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a directory with these files has.
    fn found(files: &[(&str, &str)]) -> Result<Option<Sources>> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        find(&ModelFiles::open(dir.path()).unwrap())
    }

    fn texts(files: &[(&str, &str)]) -> Option<(String, Option<String>)> {
        found(files).unwrap().map(|s| (s.default.text, s.tool_use.map(|s| s.text)))
    }

    #[test]
    fn templates_are_found_in_their_order() {
        let jinja = ("chat_template.jinja", "A");
        let tools = ("additional_chat_templates/tool_use.jinja", "B");
        let config = ("tokenizer_config.json", r#"{"chat_template": "C"}"#);
        let list = (
            "tokenizer_config.json",
            r#"{"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#,
        );
        let legacy = ("chat_template.json", r#"{"chat_template": "E"}"#);
        let none = ("tokenizer_config.json", r#"{"chat_template": null}"#);
        let some = |default: &str, tools: Option<&str>| Some((default.to_owned(), tools.map(str::to_owned)));
        assert_eq!(texts(&[jinja, tools, config, legacy]), some("A", Some("B")));
        assert_eq!(texts(&[config, legacy]), some("C", None));
        assert_eq!(texts(&[list]), some("D", Some("T")));
        assert_eq!(texts(&[none, legacy]), some("E", None));
        assert_eq!(texts(&[none]), None);
        assert_eq!(texts(&[]), None);
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for (json, says) in [
            ("{\"chat_template\": 3}", "must be a string or a list"),
            ("{\"chat_template\": [{\"name\": \"default\"}]}", "must be a string or a list"),
            (
                "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"\"}]}",
                "no template named \"default\", only [\"rag\"]",
            ),
        ] {
            let message = found(&[("tokenizer_config.json", json)]).unwrap_err().to_string();
            assert!(message.contains("tokenizer_config.json: ") && message.contains(says), "{message}");
        }
    }
}
