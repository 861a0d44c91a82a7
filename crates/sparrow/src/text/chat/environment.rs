//! What chat templates expect around them: Jinja as transformers sets it up.

use std::borrow::Cow;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

use super::python_json;

/// Work that one rendering may do, and about a 64th of the bytes it may make: a long conversation takes a thousandth.
const FUEL: u64 = 50_000_000;

/// A template says that it cannot render a conversation.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// An environment without templates.
pub fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build().expect("the delimiters are the usual ones"));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", python_json::filter);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment
}

/// As in Python: `none` cannot be gone through.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok() || value.kind() == ValueKind::String
}

/// As in Python: what has a length and elements.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Refusal(message)))
}

fn strftime_now(_: &State, format: &str) -> Result<String, Error> {
    let now = jiff::ZonedDateTime::now();
    jiff::fmt::strtime::format(format, &now).map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
}

/// `{% generation %}` marks what the model wrote, for training; it changes nothing of the text.
pub fn without_generation_blocks(source: &str) -> Cow<'_, str> {
    let mut replaced = String::new();
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        replaced.push_str(before);
        let word = tag.trim_start_matches(['-', '+']).trim_start();
        replaced.push_str(&tag[..tag.len() - word.len()]);
        let end = word.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(word.len());
        replaced.push_str(match &word[..end] {
            "generation" => "if true",
            "endgeneration" => "endif",
            other => other,
        });
        rest = &word[end..];
    }
    if replaced.is_empty() {
        return source.into();
    }
    replaced.push_str(rest);
    replaced.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_blocks_leave_their_content() {
        let source = "{%- generation -%} a {{ b }}{% endgeneration %}{% if generation %}{%+endgeneration%}";
        let expected = "{%- if true -%} a {{ b }}{% endif %}{% if generation %}{%+endif%}";
        assert_eq!(without_generation_blocks(source), expected);
        assert_eq!(without_generation_blocks("{% generation"), "{% if true");
        assert_eq!(without_generation_blocks("no tags {"), "no tags {");
    }

    #[test]
    fn dates_are_written_as_asked_for() {
        let render = |text: &str| environment().render_str(text, ()).map_err(|e| e.to_string());
        let date = render("{{ strftime_now('%Y-%m-%d') }}").unwrap();
        assert!(date.len() == 10 && date.starts_with("20"), "{date}");
        assert!(render("{{ strftime_now('%!') }}").is_err());
    }

    #[test]
    fn endless_templates_end() {
        for text in [
            "{% for i in range(99999999) %}{% for j in range(99999999) %}x{% endfor %}{% endfor %}",
            "{{ 'a' * 9999999999 }}",
        ] {
            assert!(environment().render_str(text, ()).is_err(), "{text}");
        }
    }
}
