//! The filter `tojson` as chat templates know it: Python's `json.dumps`, to the character.

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind, Value};

/// How JSON is written.
struct Style {
    ensure_ascii: bool,
    /// What a line begins with at each depth; none: all in one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// `value | tojson(ensure_ascii, indent, separators, sort_keys)`.
pub fn filter(value: Value, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let arguments = arguments.into_values();
    let (positional, named): (&[Value], Kwargs) = from_args(&arguments)?;
    let argument = |at: usize, name: &str| -> Result<Value, Error> {
        let given = positional.get(at).cloned().map_or_else(|| named.get::<Option<Value>>(name), |v| Ok(Some(v)))?;
        Ok(given.filter(|v| !v.is_none()).unwrap_or(Value::UNDEFINED))
    };
    let [ensure_ascii, indent] = [argument(0, "ensure_ascii")?, argument(1, "indent")?];
    let [separators, sort_keys] = [argument(2, "separators")?, argument(3, "sort_keys")?];
    named.assert_all_used()?;
    let indent = match indent.as_str() {
        Some(text) => Some(text.to_owned()),
        None if indent.is_undefined() => None,
        None => Some(" ".repeat(usize::try_from(indent.clone()).unwrap_or(0).min(64))),
    };
    let (item_separator, key_separator) = match separators.is_undefined() {
        true => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        false => {
            let separator = |i| Ok::<_, Error>(separators.get_item_by_index(i)?.to_string());
            (separator(0)?, separator(1)?)
        }
    };
    let style = Style {
        ensure_ascii: ensure_ascii.is_true(),
        indent,
        item_separator,
        key_separator,
        sort_keys: sort_keys.is_true(),
    };
    let mut out = String::new();
    style.write(&value, 0, &mut out)?;
    Ok(out)
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        const DEPTH: usize = 100;
        let refuse = |what: String| Err(Error::new(ErrorKind::BadSerialization, what));
        if depth > DEPTH {
            return refuse(format!("more than {DEPTH} lists and objects inside each other"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item)).collect();
                self.container(['[', ']'], items, depth, out)?;
            }
            ValueKind::Map => {
                let mut items = Vec::new();
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    items.push((Some(key_text(&key)), item));
                }
                if self.sort_keys {
                    items.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.container(['{', '}'], items, depth, out)?;
            }
            kind => return refuse(format!("{kind} is not JSON")),
        }
        Ok(())
    }

    fn container(
        &self,
        [open, close]: [char; 2],
        items: Vec<(Option<String>, Value)>,
        depth: usize,
        out: &mut String,
    ) -> Result<(), Error> {
        let new_line = |depth: usize, out: &mut String| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(open);
        let is_empty = items.is_empty();
        for (i, (key, item)) in items.into_iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item_separator);
            }
            new_line(depth + 1, out);
            if let Some(key) = key {
                self.string(&key, out);
                out.push_str(&self.key_separator);
            }
            self.write(&item, depth + 1, out)?;
        }
        if !is_empty {
            new_line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        let quoted = serde_json::Value::from(text).to_string();
        if !self.ensure_ascii {
            out.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            match c.is_ascii() {
                true => out.push(c),
                false => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
            }
        }
    }
}

fn key_text(key: &Value) -> String {
    match key.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => key.is_true().to_string(),
        ValueKind::Number => number(key),
        _ => key.to_string(),
    }
}

fn number(value: &Value) -> String {
    let Some(float) = (!value.is_integer()).then(|| f64::try_from(value.clone()).ok()).flatten() else {
        return value.to_string();
    };
    if float.is_nan() {
        return "NaN".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    // Rust writes exponents where Python does, but as 1e16 and 1e-5 instead of 1e+16 and 1e-05.
    let text = format!("{float:?}");
    match text.split_once('e').map(|(digits, exponent)| (digits, exponent.parse::<i32>().expect("it was just written")))
    {
        Some((digits, exponent)) => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;

    use super::*;

    #[test]
    fn json_is_written_as_python_writes_it() {
        let mut environment = Environment::new();
        environment.add_filter("tojson", filter);
        let value: Value = serde_json::from_str(
            r#"{"b": [1, 2.0, 1e16, 1e-5, -0.5, true, null], "a": {}, "é\n": "😀<&'\u007f", "l": []}"#,
        )
        .unwrap();
        for (text, expected) in [
            (
                "{{ v|tojson }}",
                "{\"b\": [1, 2.0, 1e+16, 1e-05, -0.5, true, null], \"a\": {}, \"é\\n\": \"😀<&'\u{7f}\", \"l\": []}",
            ),
            ("{{ v['é\n']|tojson(ensure_ascii=True) }}", "\"\\ud83d\\ude00<&'\u{7f}\""),
            ("{{ v['é\n']|tojson(true) }}", "\"\\ud83d\\ude00<&'\u{7f}\""),
            (
                "{{ {'b': [1, {}], 'a': 2}|tojson(indent=2, sort_keys=true) }}",
                "{\n  \"a\": 2,\n  \"b\": [\n    1,\n    {}\n  ]\n}",
            ),
            ("{{ {'b': [1, 2]}|tojson(separators=(',', ':')) }}", "{\"b\":[1,2]}"),
            ("{{ {1: none}|tojson(indent=none) }}", "{\"1\": null}"),
        ] {
            let rendered = environment.render_str(text, minijinja::context! { v => value.clone() });
            assert_eq!(rendered.unwrap(), expected, "{text}");
        }
        for text in ["{{ undefined|tojson }}", "{{ 1|tojson(indents=2) }}"] {
            assert!(environment.render_str(text, ()).is_err(), "{text}");
        }
    }
}
