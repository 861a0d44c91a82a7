//! Special tokens in what people write are text, not commands: a mark inside keeps them apart from those of the template.

use minijinja::Value;
use minijinja::value::ValueKind;

/// Breaks special tokens in the strings of a conversation, and tells them from the template's after rendering.
pub struct Marks<'a> {
    mark: char,
    special: &'a [String],
}

impl<'a> Marks<'a> {
    /// Marks for these special tokens, in strings like those of `value`.
    pub fn new(special: &'a [String], value: &Value) -> Self {
        // Codes that Unicode keeps free for a program's own use; one that nobody used already.
        let mut free: Vec<char> = ('\u{fdd0}'..='\u{fdef}').collect();
        strings(value, &mut |text| free.retain(|c| !text.contains(*c)));
        Marks { mark: free.first().copied().unwrap_or('\u{fdd0}'), special }
    }

    /// `value` with a mark inside every special token of its strings.
    pub fn mark(&self, value: &Value) -> Value {
        match value.kind() {
            ValueKind::String => value.as_str().map_or_else(|| value.clone(), |text| self.mark_text(text).into()),
            ValueKind::Seq => match value.try_iter() {
                Ok(items) => items.map(|item| self.mark(&item)).collect(),
                Err(_) => value.clone(),
            },
            ValueKind::Map => Value::from_pairs(entries(value).map(|(key, item)| (key, self.mark(&item)))),
            _ => value.clone(),
        }
    }

    fn mark_text(&self, text: &str) -> String {
        let mut marked = String::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            marked.push(c);
            if self.at(&text[at..]).is_some() {
                marked.push(self.mark);
            }
        }
        marked
    }

    /// The longest special token that `text` begins with.
    fn at(&self, text: &str) -> Option<&'a String> {
        self.special.iter().filter(|token| text.starts_with(token.as_str())).max_by_key(|token| token.len())
    }

    /// What was rendered, without marks, in pieces whose special tokens are commands (true) or text (false). They meet only beside
    /// a special token of the template.
    pub fn pieces(&self, rendered: &str) -> Vec<(String, bool)> {
        let mut pieces = Vec::new();
        let mut commands = String::new();
        let mut stretch = String::new();
        let mut rest = rendered;
        loop {
            let special = self.at(rest);
            if special.is_some() || rest.is_empty() {
                let text = std::mem::take(&mut stretch);
                match text.contains(self.mark) {
                    false => commands.push_str(&text),
                    true => {
                        pieces.push((std::mem::take(&mut commands), true));
                        pieces.push((text.replace(self.mark, ""), false));
                    }
                }
            }
            let step = match (special, rest.chars().next()) {
                (Some(token), _) => token.len(),
                (None, Some(c)) => c.len_utf8(),
                (None, None) => break,
            };
            let to = if special.is_some() { &mut commands } else { &mut stretch };
            to.push_str(&rest[..step]);
            rest = &rest[step..];
        }
        pieces.push((commands, true));
        pieces.retain(|(text, _)| !text.is_empty());
        pieces
    }
}

/// Keys and values of a map.
pub fn entries(map: &Value) -> impl Iterator<Item = (Value, Value)> + '_ {
    let keys = map.try_iter().into_iter().flatten();
    keys.map(|key| (key.clone(), map.get_item(&key).unwrap_or_default()))
}

/// Calls `each` with every string inside.
fn strings(value: &Value, each: &mut dyn FnMut(&str)) {
    match value.kind() {
        ValueKind::String => each(value.as_str().unwrap_or_default()),
        ValueKind::Seq => value.try_iter().into_iter().flatten().for_each(|item| strings(&item, each)),
        ValueKind::Map => entries(value).for_each(|(_, item)| strings(&item, each)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special() -> Vec<String> {
        ["<s>", "<|end|>", "<|end|>x"].map(str::to_owned).to_vec()
    }

    #[test]
    fn marked_tokens_are_text_and_others_are_commands() {
        let special = special();
        let messages: Value = serde_json::from_str(r#"[{"role": "user", "content": "a<|end|><s> b"}, 3]"#).unwrap();
        let marks = Marks::new(&special, &messages);
        let marked = marks.mark(&messages);
        let content = marked.get_item_by_index(0).unwrap().get_attr("content").unwrap().to_string();
        assert_eq!(content, "a<\u{fdd0}|end|><\u{fdd0}s> b");
        assert_eq!(marked.get_item_by_index(1).unwrap(), Value::from(3));
        let rendered = format!("<s>user\n{content} <|end|>model\n");
        let expected = [("<s>", true), ("user\na<|end|><s> b ", false), ("<|end|>model\n", true)];
        assert_eq!(marks.pieces(&rendered), expected.map(|(text, special)| (text.to_owned(), special)));
    }

    #[test]
    fn nothing_special_is_one_piece() {
        let special = special();
        let marks = Marks::new(&special, &Value::from("a"));
        assert_eq!(marks.pieces("<s>a<|end|>x<"), [("<s>a<|end|>x<".to_owned(), true)]);
        assert_eq!(marks.pieces(""), []);
    }

    #[test]
    fn a_mark_is_a_character_that_nobody_used() {
        let special = special();
        let text = "\u{fdd0}<s>";
        let marks = Marks::new(&special, &Value::from(text));
        let marked = marks.mark(&Value::from(text)).to_string();
        assert_eq!(marks.pieces(&marked), [(text.to_owned(), false)]);
    }
}
