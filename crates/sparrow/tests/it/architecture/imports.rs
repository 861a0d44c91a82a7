//! Which file of a crate imports which, from its `use` lines and the paths in its text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A file of a crate: `run::session` of `run/session/mod.rs` or `run/session.rs`; nothing of `lib.rs`.
#[derive(Debug)]
pub struct Module {
    pub name: String,
    pub imports: BTreeSet<String>,
}

/// The files of a crate.
#[derive(Debug)]
pub struct Graph {
    pub modules: Vec<Module>,
}

impl Graph {
    /// Of the sources in a folder. A parent that re-exports from its children does not depend on them by that; unit tests are left out.
    pub fn read(src: &Path) -> Self {
        let files: BTreeMap<String, String> = sources(src)
            .into_iter()
            .map(|file| (name(file.strip_prefix(src).unwrap()), code(&std::fs::read_to_string(&file).unwrap())))
            .collect();
        // What the crate's root re-exports stands for what it is.
        let root = files.get("").map_or_else(Vec::new, |code| paths(code));
        let exported: BTreeMap<&str, &str> = root
            .iter()
            .filter_map(|path| path.strip_prefix("pub "))
            .filter_map(|path| Some((path.rsplit("::").next()?, path)))
            .collect();
        let meant = |path: String| {
            let name = path.strip_prefix("crate::").and_then(|rest| rest.split("::").next());
            match name.and_then(|name| exported.get(name)) {
                Some(path) => format!("crate::{path}"),
                None => path,
            }
        };
        let modules = files.iter().map(|(name, code)| Module {
            name: name.clone(),
            imports: paths(code).into_iter().map(meant).filter_map(|path| resolve(&files, name, &path)).collect(),
        });
        Graph { modules: modules.collect() }
    }

    /// The folders with files in them, the crate itself among them.
    pub fn folders(&self) -> BTreeSet<String> {
        let parents = |name: &String| {
            let parts: Vec<&str> = name.split("::").collect();
            (0..parts.len()).map(|n| parts[..n].join("::")).collect::<Vec<_>>()
        };
        self.modules.iter().flat_map(|module| parents(&module.name)).collect()
    }

    /// The same between what lies directly in a folder: a folder is all that is in it.
    pub fn inside(&self, folder: &str) -> Graph {
        let child = |name: &str| {
            let rest = if folder.is_empty() { Some(name) } else { name.strip_prefix(folder)?.strip_prefix("::") };
            rest.and_then(|rest| rest.split("::").next()).filter(|child| !child.is_empty()).map(str::to_owned)
        };
        let mut children: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for module in &self.modules {
            let Some(own) = child(&module.name) else { continue };
            let others = module.imports.iter().filter_map(|import| child(import)).filter(|other| *other != own);
            children.entry(own.clone()).or_default().extend(others);
        }
        Graph { modules: children.into_iter().map(|(name, imports)| Module { name, imports }).collect() }
    }

    /// A ring, from a module back to itself.
    pub fn ring(&self) -> Option<Vec<String>> {
        let imports: BTreeMap<&str, &BTreeSet<String>> =
            self.modules.iter().map(|module| (module.name.as_str(), &module.imports)).collect();
        let mut done = BTreeSet::new();
        imports.keys().find_map(|name| walk(&imports, name, &mut Vec::new(), &mut done))
    }
}

/// Goes down from `at`; a module met twice on the way closes a ring.
fn walk<'a>(
    imports: &BTreeMap<&'a str, &'a BTreeSet<String>>,
    at: &'a str,
    way: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Option<Vec<String>> {
    if let Some(start) = way.iter().position(|name| *name == at) {
        return Some(way[start..].iter().chain([&at]).map(|name| name.to_string()).collect());
    }
    if done.contains(at) {
        return None;
    }
    way.push(at);
    let found = imports.get(at).and_then(|next| next.iter().find_map(|name| walk(imports, name, way, done)));
    way.pop();
    done.insert(at);
    found
}

/// Every Rust file in a folder.
pub fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => files.extend(sources(&entry)),
            false if entry.extension().is_some_and(|end| end == "rs") => files.push(entry),
            false => {}
        }
    }
    files
}

fn name(path: &Path) -> String {
    let path = path.with_extension("");
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    let parts = match parts.split_last() {
        Some((last, folders)) if ["mod", "lib", "main"].contains(&last.as_ref()) => folders,
        _ => &parts,
    };
    parts.join("::")
}

/// The text without comments and without the unit tests at its end.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    let text = lines.collect::<Vec<_>>().join("\n");
    let tests = text.match_indices("#[cfg(test)]").find(|(at, _)| {
        let item = text[*at..].lines().nth(1).unwrap_or_default();
        item.starts_with("mod ") && item.ends_with('{')
    });
    tests.map_or(text.clone(), |(at, _)| text[..at].to_owned())
}

/// What the code names: `use` lines, those that re-export marked with `pub `, and paths from `crate` or `super`.
fn paths(code: &str) -> Vec<String> {
    let (mut found, mut rest) = (Vec::new(), String::new());
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let statement = line.trim_start();
        let (public, tree) = match statement.split_once("use ") {
            Some(("", tree)) => ("", tree),
            Some((visibility, tree)) if visibility.starts_with("pub") && !visibility.contains('(') => ("pub ", tree),
            Some((visibility, tree)) if visibility.starts_with("pub(") && visibility.ends_with(") ") => ("pub ", tree),
            _ => {
                rest.push_str(line);
                rest.push('\n');
                continue;
            }
        };
        let mut tree = tree.to_owned();
        while !tree.trim_end().ends_with(';') {
            tree.push_str(lines.next().unwrap_or(";"));
        }
        found.extend(expand(tree.trim_end().trim_end_matches(';')).into_iter().map(|path| format!("{public}{path}")));
    }
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    found.extend(
        rest.split(|c: char| !word(c))
            .filter(|path| path.starts_with("crate::") || path.starts_with("super::"))
            .map(str::to_owned),
    );
    found
}

/// The paths of a `use` tree.
pub fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((prefix, group)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default().trim();
        return if path.is_empty() { Vec::new() } else { vec![path.to_owned()] };
    };
    let group = group.strip_suffix('}').unwrap_or(group);
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in group.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        match c {
            ',' if depth == 0 => parts.push(String::new()),
            c => parts.last_mut().unwrap().push(c),
        }
    }
    let each = parts.iter().flat_map(|part| expand(part));
    each.map(|path| format!("{}{path}", prefix.trim())).collect()
}

/// The module that a path of module `here` leads into, if it is another one.
fn resolve(files: &BTreeMap<String, String>, here: &str, path: &str) -> Option<String> {
    let (public, path) = path.strip_prefix("pub ").map_or((false, path), |path| (true, path));
    let mut parts: Vec<&str> = path.split("::").collect();
    let mut base: Vec<&str> = if here.is_empty() { Vec::new() } else { here.split("::").collect() };
    match parts[0] {
        "crate" => base.clear(),
        "super" | "self" => {}
        child if files.contains_key(&[&base[..], &[child]].concat().join("::")) => parts.insert(0, "self"),
        _ => return None,
    }
    if parts[0] != "super" {
        parts.remove(0);
    }
    while parts.first() == Some(&"super") {
        base.pop();
        parts.remove(0);
    }
    let whole = [base, parts].concat();
    let lengths = (1..=whole.len()).rev();
    let found = lengths.map(|n| whole[..n].join("::")).find(|module| files.contains_key(module))?;
    let of_child = here.is_empty() || found.starts_with(&format!("{here}::"));
    (found != here && !(public && of_child)).then_some(found)
}
