//! Tensors that are called as usual but for what comes before: saved from a part of a model, or from a wrapper around it.

use std::collections::BTreeSet;

use crate::spec::names::{LLAMA, OPT, TensorNames};

/// Where names begin, the more special first.
const LAYOUTS: [TensorNames; 2] = [OPT, LLAMA];
/// The name that tells where the others begin.
const EMBEDDING: &str = "embed_tokens";

/// Old and new names of the tensors that are to be called otherwise: none where names are as usual, or could mean several things.
pub(super) fn usual_names(stored: &BTreeSet<&str>) -> Vec<(String, String)> {
    let Some(before) = sole_prefix(stored, &format!("{EMBEDDING}.weight")) else { return Vec::new() };
    let trunk = |layout: &TensorNames| layout.embedding.strip_suffix(EMBEDDING).unwrap_or_default();
    let own = |layout: &TensorNames| trunk(layout).strip_prefix("model.").unwrap_or_default();
    let Some(layout) = LAYOUTS.iter().find(|layout| before.ends_with(own(layout))) else { return Vec::new() };
    let parts = [layout.embedding, layout.positions, layout.layers, layout.norm];
    let head = sole_prefix(stored, &format!("{}.weight", layout.head));
    let heads = head.map(|before| (format!("{before}{}.", layout.head), format!("{}.", layout.head)));
    let begins = parts
        .iter()
        .filter_map(|part| Some((format!("{before}{}.", part.strip_prefix(trunk(layout))?), format!("{part}."))));
    let begins: Vec<(String, String)> = begins.chain(heads).filter(|(old, new)| old != new).collect();
    let usual =
        |name: &&str| begins.iter().find_map(|(old, new)| Some(format!("{new}{}", name.strip_prefix(old.as_str())?)));
    let renamed: Vec<(String, String)> =
        stored.iter().filter_map(|name| Some((name.to_string(), usual(name)?))).collect();
    match renamed.iter().any(|(_, new)| stored.contains(new.as_str())) {
        true => Vec::new(),
        false => renamed,
    }
}

/// What comes before `end` in the only name that ends so.
fn sole_prefix<'a>(stored: &BTreeSet<&'a str>, end: &str) -> Option<&'a str> {
    let before = |name: &&'a str| name.strip_suffix(end).filter(|before| before.is_empty() || before.ends_with('.'));
    let mut found = stored.iter().filter_map(before);
    found.next().filter(|_| found.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names that `names` are called by in the end.
    fn called(names: &[&str]) -> Vec<String> {
        let stored: BTreeSet<&str> = names.iter().copied().collect();
        let renamed = usual_names(&stored);
        let of =
            |name: &&str| renamed.iter().find(|(old, _)| old == name).map_or(name.to_string(), |(_, new)| new.clone());
        names.iter().map(of).collect()
    }

    #[test]
    fn what_comes_before_is_replaced() {
        const USUAL: [&str; 4] =
            ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"];
        assert_eq!(called(&USUAL), USUAL);
        for before in ["_orig_mod.", "module.", "language_model.", "base_model.model.", "a.b.c."] {
            let names = USUAL.map(|name| format!("{before}{name}"));
            assert_eq!(called(&names.each_ref().map(String::as_str)), USUAL, "{before}");
        }
        for before in ["", "transformer.", "model.language_model."] {
            let names =
                USUAL.map(|name| name.strip_prefix("model.").map_or(name.into(), |name| format!("{before}{name}")));
            assert_eq!(called(&names.each_ref().map(String::as_str)), USUAL, "{before}");
        }
        let names = ["decoder.embed_tokens.weight", "decoder.embed_positions.weight", "decoder.layers.0.fc1.weight"];
        assert_eq!(called(&names), names.map(|name| format!("model.{name}")));
        let other = ["layers.0.mlp.up_proj.weight", "layers.0.q.weight"];
        assert_eq!(
            called(&[&["embed_tokens.weight", "vision.layers.0.x"][..], &other].concat())[1],
            "vision.layers.0.x"
        );
    }

    #[test]
    fn names_that_could_mean_two_things_stay() {
        for names in [
            &["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"][..],
            &["x.embed_tokens.weight", "x.layers.0.a", "model.layers.0.a"],
            &["wte.weight", "h.0.attn.weight"],
            &["xembed_tokens.weight"],
        ] {
            assert_eq!(called(names), names);
        }
    }
}
