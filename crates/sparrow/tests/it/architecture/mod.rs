//! The house plan: no file or folder of any crate is part of a ring of imports, the library's floors import downwards only, and
//! ARCHITECTURE.md names the same floors.

mod imports;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use imports::{Graph, Module};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn no_crate_has_a_ring_of_imports() {
    let crates = std::fs::read_dir(root().join("crates")).unwrap().map(|entry| entry.unwrap().path());
    let mut seen = 0;
    let crates = crates.chain([root().join("bindings/python")]);
    for dir in crates.filter(|dir| dir.join("src").is_dir()) {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let graph = Graph::read(&dir.join("src"));
        assert!(!graph.modules.is_empty(), "{name}: no source was found");
        if let Some(ring) = graph.ring() {
            panic!("{name}: files import each other in a ring: {}", ring.join(" -> "));
        }
        for folder in graph.folders() {
            if let Some(ring) = graph.inside(&folder).ring() {
                let place = if folder.is_empty() { "its top" } else { &folder };
                panic!("{name}: folders in {place} import each other in a ring: {}", ring.join(" -> "));
            }
        }
        seen += 1;
    }
    assert!(seen >= 7, "only {seen} crates were found");
}

/// The floors as `lib.rs` lists them, lowest first.
fn floors() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("crates/sparrow/src/lib.rs")).unwrap();
    let (_, list) = text.split_once("// The floors, lowest first").expect("lib.rs lists the floors");
    let list = list.split("#[doc(hidden)]").next().unwrap();
    let name = |line: &str| Some(line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';')?.to_owned());
    list.lines().filter_map(name).collect()
}

#[test]
fn floors_import_downwards_only() {
    let floors = floors();
    assert!(floors.len() > 10, "{floors:?}");
    let height: BTreeMap<&str, usize> = floors.iter().enumerate().map(|(i, floor)| (floor.as_str(), i)).collect();
    let graph = Graph::read(&root().join("crates/sparrow/src"));
    for Module { name, imports, .. } in &graph.modules {
        let floor = |module: &str| height.get(module.split("::").next().unwrap_or_default()).copied();
        let Some(own) = floor(name) else { continue };
        for import in imports {
            let up = floor(import).filter(|&floor| floor > own);
            assert!(up.is_none(), "{name} imports {import}, which is a higher floor");
        }
    }
}

#[test]
fn the_map_names_the_same_floors() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, map) = text.split_once("crates/sparrow/src\n").expect("ARCHITECTURE.md has a map of crates/sparrow/src");
    let map = map.split("```").next().unwrap();
    let named: Vec<&str> = map.lines().filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next()).collect();
    let named: Vec<&str> = named.into_iter().filter(|name| !name.contains('/')).collect();
    assert_eq!(named, floors(), "the map of ARCHITECTURE.md beside the list in lib.rs");
}

#[test]
fn the_forward_pass_names_no_kernels() {
    for folder in ["run", "select", "engine"] {
        let dir = root().join("crates/sparrow/src").join(folder);
        for file in imports::sources(&dir) {
            let text = std::fs::read_to_string(&file).unwrap();
            assert!(!text.contains("sparrow_kernels"), "{} names sparrow_kernels", file.display());
        }
    }
}

#[test]
fn rings_are_found() {
    let module = |name: &str, imports: &[&str]| Module {
        name: name.into(),
        imports: imports.iter().map(|import| import.to_string()).collect(),
    };
    let modules = vec![
        module("a::one", &["b::two"]),
        module("b::two", &["c"]),
        module("c", &["a::three"]),
        module("a::three", &[]),
    ];
    let graph = Graph { modules };
    assert_eq!(graph.ring(), None, "files are in no ring");
    assert_eq!(graph.inside("").ring().unwrap(), ["a", "b", "c", "a"]);
    assert_eq!(imports::expand("crate::{a::{b, self as x}, c as d}"), ["crate::a::b", "crate::a::self", "crate::c"]);
}
