//! Broken model directories: each is refused with a message that names the file and what is wrong with it, without a
//! panic, without waiting, and without asking for much memory.

mod tiny;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use sparrow::DType;
use tiny::{TensorFile, framed, tensors, write, write_json, write_shards, write_sidecar};

/// Remembers the largest allocation.
struct Largest;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: as in `alloc`.
        unsafe { System.realloc(old, layout, size) }
    }
    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Largest = Largest;

/// A name, how to break the good model, and what the message must contain.
type Case = (&'static str, Box<dyn Fn(&Path)>, Vec<String>);

fn case(name: &'static str, breaks: impl Fn(&Path) + 'static, says: &[&str]) -> Case {
    (name, Box::new(breaks), says.iter().map(|s| s.to_string()).collect())
}

/// Every case fails in the way it says; all failures are reported together.
fn check(cases: Vec<Case>) {
    const LIMIT: usize = 16 << 20;
    let mut wrong = Vec::new();
    for (name, breaks, says) in cases {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("model");
        fs::create_dir(&dir).unwrap();
        tiny::write_model(&dir);
        breaks(&dir);
        LARGEST.store(0, Ordering::Relaxed);
        let (send, done) = mpsc::channel();
        let thread = std::thread::spawn(move || send.send(tiny::load_and_step(&dir).map_err(|e| e.to_string())));
        match done.recv_timeout(Duration::from_secs(30)) {
            Ok(Err(message)) => {
                let missing: Vec<_> = says.iter().filter(|s| !message.contains(s.as_str())).collect();
                if !missing.is_empty() {
                    wrong.push(format!("{name}: {message:?} does not say {missing:?}"));
                }
                if message.len() > 1000 {
                    wrong.push(format!("{name}: a message of {} bytes", message.len()));
                }
            }
            Ok(Ok(())) => wrong.push(format!("{name}: was accepted")),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                wrong.push(format!("{name}: still loading after 30 s"));
                continue;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => wrong.push(format!("{name}: panicked")),
        }
        let _ = thread.join();
        let largest = LARGEST.load(Ordering::Relaxed);
        if largest > LIMIT {
            wrong.push(format!("{name}: asked for {largest} bytes of memory at once"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_good_models_load() {
    for dtype in [None, Some(DType::I8), Some(DType::I4G32)] {
        let dir = tempfile::tempdir().unwrap();
        tiny::write_model(dir.path());
        tiny::write_packed(dir.path(), dtype);
        tiny::load_and_step(dir.path()).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    tiny::write_model(dir.path());
    tiny::load_and_step(dir.path()).unwrap();
    write_sidecar(dir.path());
    tiny::load_and_step(dir.path()).unwrap();
    fs::remove_file(dir.path().join("sparrow.json")).unwrap();
    write_shards(dir.path());
    tiny::load_and_step(dir.path()).unwrap();
}

const UP: &str = "model.layers.1.mlp.up_proj.weight";

/// Edits the good file of weights.
fn tensor_file(edit: impl Fn(&mut TensorFile) + 'static) -> impl Fn(&Path) {
    move |dir| {
        let mut file = TensorFile::new(&tensors());
        edit(&mut file);
        write(&dir.join("model.safetensors"), file.bytes());
    }
}

/// Changes one entry of one tensor's header.
fn header(tensor: &'static str, key: &'static str, value: Value) -> impl Fn(&Path) {
    tensor_file(move |file| file.header[tensor][key] = value.clone())
}

/// Writes these bytes where the weights should be.
fn weights(bytes: impl Fn(Vec<u8>) -> Vec<u8> + 'static) -> impl Fn(&Path) {
    move |dir| write(&dir.join("model.safetensors"), bytes(TensorFile::new(&tensors()).bytes()))
}

/// Weights with one tensor of another shape.
fn reshaped(tensor: &'static str, shape: &'static [usize]) -> impl Fn(&Path) {
    move |dir| {
        let mut all = tensors();
        all.iter_mut().find(|(name, _)| name == tensor).unwrap().1 = shape.to_vec();
        write(&dir.join("model.safetensors"), TensorFile::new(&all).bytes());
    }
}

const PACKED: &str = "model.layers.1.mlp.up_proj";

/// Edits a good file of bitmaps, of elements as they are or quantised.
fn packed(dtype: Option<DType>, edit: impl Fn(&mut TensorFile) + 'static) -> impl Fn(&Path) {
    move |dir| {
        let mut file = tiny::write_packed(dir, dtype);
        edit(&mut file);
        write(&dir.join("model.safetensors"), file.bytes());
    }
}

/// Changes bytes of one part of [`PACKED`], from `at` on.
fn packed_bytes(part: &'static str, at: usize, bytes: &'static [u8]) -> impl Fn(&Path) {
    packed(None, move |file| file.tensor(&format!("{PACKED}.{part}"))[at..at + bytes.len()].copy_from_slice(bytes))
}

/// Changes the header of one part of [`PACKED`].
fn packed_header(dtype: Option<DType>, part: &'static str, key: &'static str, value: Value) -> impl Fn(&Path) {
    packed(dtype, move |file| file.header[&format!("{PACKED}.{part}")][key] = value.clone())
}

#[test]
fn bitmaps() {
    let inconsistent = "consistent bitmap";
    let without = |part: &'static str| {
        packed(Some(DType::I8), move |file| {
            // Another name: it stays in the file.
            let info = file.header.remove(&format!("{PACKED}.{part}")).unwrap();
            file.header.insert("spare".into(), info);
        })
    };
    check(vec![
        case("no shape", without("shape"), &[PACKED, "shape", "no such tensor"]),
        case("no bitmask", without("bitmask"), &[PACKED, "no such tensor"]),
        case("no elements", without("compressed"), &[PACKED, "compressed", "no such tensor"]),
        case("no offsets", without("row_offsets"), &[PACKED, "row_offsets", "no such tensor"]),
        case("no scales", without("weight_scale"), &[PACKED, "weight_scale", "no such tensor"]),
        case("another shape", packed_bytes("shape", 0, &[9]), &[PACKED, "shape", "[12, 8]", "[9, 8]"]),
        case(
            "bits past the last column",
            packed(None, |file| file.tensor("model.layers.1.mlp.down_proj.bitmask")[1] |= 0xf0),
            &["down_proj", inconsistent, "past the last column"],
        ),
        case("a bit too few", packed_bytes("bitmask", 3, &[0]), &[PACKED, inconsistent, "offset"]),
        case("an offset too large", packed_bytes("row_offsets", 8, &[200]), &[PACKED, inconsistent, "offset"]),
        case("a negative offset", packed_bytes("row_offsets", 8, &[0xff; 8]), &[PACKED, inconsistent, "offset"]),
        case("a first offset", packed_bytes("row_offsets", 0, &[1]), &[PACKED, inconsistent, "offset"]),
        case(
            "elements of no type",
            packed_header(None, "compressed", "dtype", json!("I32")),
            &[PACKED, "compressed", "F32, F16, BF16, I8 or U8", "I32"],
        ),
        case(
            "another mask",
            packed_header(None, "bitmask", "shape", json!([6, 2])),
            &[PACKED, "bitmask", "shape [12, 1]", "[6, 2]"],
        ),
        case(
            "offsets of columns",
            packed_header(None, "row_offsets", "shape", json!([2, 6])),
            &[PACKED, "row_offsets", "shape [12]", "[2, 6]"],
        ),
        case(
            "scales of columns",
            packed_header(Some(DType::I8), "weight_scale", "shape", json!([1, 12])),
            &[PACKED, "weight_scale", "shape [12, 1]", "[1, 12]"],
        ),
        case(
            "too many groups",
            packed_header(Some(DType::I4G32), "weight_scale", "shape", json!([6, 2])),
            &[PACKED, "weight_scale", "[6, 2]"],
        ),
        case(
            "whole and packed",
            packed(None, |file| {
                let info = file.header["model.norm.weight"].clone();
                let start = file.data.len();
                file.data.extend([0; 4 * 12 * 8]);
                let mut whole = info;
                whole["shape"] = json!([12, 8]);
                whole["data_offsets"] = json!([start, file.data.len()]);
                file.header.insert(UP.into(), whole);
            }),
            &[PACKED, "this one too"],
        ),
    ]);
}

/// The range of [`UP`], shifted.
fn shifted(start: i64, end: i64) -> impl Fn(&Path) {
    tensor_file(move |file| {
        let range = &file.header[UP]["data_offsets"];
        let (from, to) = (range[0].as_i64().unwrap(), range[1].as_i64().unwrap());
        file.header[UP]["data_offsets"] = json!([from + start, to + end]);
    })
}

#[test]
fn safetensors_files() {
    const FILE: &str = "model.safetensors";
    let invalid = "not a valid safetensors file";
    check(vec![
        case("no weights", |d| fs::remove_file(d.join(FILE)).unwrap(), &["neither", FILE, "index"]),
        case("empty", weights(|_| Vec::new()), &[FILE, invalid, "0 bytes"]),
        case("truncated in the length", weights(|b| b[..5].to_vec()), &[FILE, invalid, "5 bytes"]),
        case("truncated in the header", weights(|b| b[..100].to_vec()), &[FILE, invalid, "100 bytes"]),
        case("truncated in the data", weights(|b| b[..b.len() - 7].to_vec()), &[FILE, invalid, "truncated"]),
        case("trailing bytes", weights(|b| [b, vec![0; 3]].concat()), &[FILE, invalid, "truncated"]),
        case("header as long as can be", weights(|b| [&[0xff; 8], &b[8..]].concat()), &[FILE, invalid, "announced"]),
        case(
            "header longer than the file",
            weights(|b| [&(b.len() as u64).to_le_bytes(), &b[8..]].concat()),
            &[FILE, invalid, "header length"],
        ),
        case(
            "header above 100 MB",
            |d| {
                // Sparse: takes no room on disk.
                let file = fs::File::create(d.join(FILE)).unwrap();
                file.set_len(200_000_008).unwrap();
                std::io::Write::write_all(&mut &file, &200_000_000u64.to_le_bytes()).unwrap();
            },
            &[FILE, invalid, "too large", "200000000"],
        ),
        case("header of no bytes", weights(|_| framed(b"", b"")), &[FILE, invalid, "JSON"]),
        case("header not JSON", weights(|_| framed(b"{\"a\": [1, 2", b"")), &[FILE, invalid, "JSON"]),
        case("header not UTF-8", weights(|_| framed(b"{\"\xff\xfe\": 1}", b"")), &[FILE, invalid, "UTF-8"]),
        case("header an array", weights(|_| framed(b"[]", b"")), &[FILE, invalid, "JSON"]),
        case("header a number", weights(|_| framed(b"17", b"")), &[FILE, invalid, "JSON"]),
        case("header nested deep", weights(|_| framed("[".repeat(1 << 20).as_bytes(), b"")), &[FILE, invalid, "JSON"]),
        case("no tensors", weights(|_| framed(b"{}", b"")), &["model.embed_tokens.weight", "no such tensor"]),
        case("overlapping ranges", shifted(-4, -4), &[FILE, invalid, "overlap"]),
        case("a hole", shifted(4, 4), &[FILE, invalid, "gap"]),
        case("range out of bounds", shifted(0, 1 << 20), &[FILE, invalid, UP]),
        case("start above end", shifted(1 << 20, 0), &[FILE, invalid, UP]),
        case("negative start", header(UP, "data_offsets", json!([-4, 380])), &[FILE, invalid, "-4"]),
        case("start that overflows", header(UP, "data_offsets", json!([u64::MAX, 380])), &[FILE, invalid, UP]),
        case(
            "shape whose product overflows",
            header(UP, "shape", json!([u64::MAX, u64::MAX])),
            &[FILE, invalid, UP, "more bytes than there can be"],
        ),
        case(
            "shape whose size overflows",
            header(UP, "shape", json!([1u64 << 32, 1u64 << 31])),
            &[FILE, invalid, UP, "more bytes than there can be"],
        ),
        case(
            "shape that does not match the range",
            header(UP, "shape", json!([13, 8])),
            &[FILE, invalid, UP, "[13, 8]", "416 bytes"],
        ),
        case("shape with a fraction", header(UP, "shape", json!([12.5, 8])), &[FILE, invalid, "12.5"]),
        case("shape a string", header(UP, "shape", json!("12x8")), &[FILE, invalid, "12x8"]),
        case("unknown dtype", header(UP, "dtype", json!("F33")), &[FILE, invalid, "F33"]),
        case(
            "no dtype",
            tensor_file(|f| drop(f.header[UP].as_object_mut().unwrap().remove("dtype"))),
            &[FILE, invalid, "dtype"],
        ),
        case("I32 weights", header(UP, "dtype", json!("I32")), &[FILE, UP, "F32, F16 or BF16", "I32"]),
        case("dtype of another size", header(UP, "dtype", json!("F64")), &[FILE, invalid, UP, "768 bytes"]),
        case(
            "I64 weights",
            |d| wide(d, "I64", 8),
            &[FILE, "tensor model.norm.weight", "F32, F16 or BF16", "found I64"],
        ),
        case("F64 weights", |d| wide(d, "F64", 8), &[FILE, "model.norm.weight", "F32, F16 or BF16", "found F64"]),
        case("BOOL weights", |d| wide(d, "BOOL", 1), &[FILE, "model.norm.weight", "F32, F16 or BF16", "found BOOL"]),
        case("F8 weights", |d| wide(d, "F8_E4M3", 1), &[FILE, "model.norm.weight", "found F8_E4M3"]),
        case("wrong shape", reshaped(UP, &[8, 12]), &[FILE, UP, "expected shape [12, 8]", "found shape [8, 12]"]),
        case("one dimension too many", reshaped(UP, &[12, 8, 1]), &[FILE, UP, "[12, 8]", "[12, 8, 1]"]),
        case("no dimension", reshaped("model.norm.weight", &[]), &[FILE, "model.norm.weight", "shape [8]", "shape []"]),
        case("a dimension of 0", reshaped(UP, &[0, 8]), &[FILE, UP, "shape [12, 8]", "shape [0, 8]"]),
        case("a longer vector", reshaped("model.norm.weight", &[9]), &["model.norm.weight", "shape [8]", "shape [9]"]),
        case(
            "missing tensor",
            |d| {
                let kept: Vec<_> = tensors().into_iter().filter(|(name, _)| name != UP).collect();
                write(&d.join(FILE), TensorFile::new(&kept).bytes());
            },
            &["model: ", UP, "expected shape [12, 8]", "no such tensor"],
        ),
        case(
            "unexpected tensor of a layer",
            |d| {
                let extra = [("model.layers.0.self_attn.q_proj.bias".to_owned(), vec![8])];
                write(&d.join(FILE), TensorFile::new(&[tensors(), extra.to_vec()].concat()).bytes());
            },
            &[FILE, "model.layers.0.self_attn.q_proj.bias", "attention_bias"],
        ),
        case(
            "tensor of a layer too many",
            |d| {
                let extra = [("model.layers.2.mlp.up_proj.weight".to_owned(), vec![12, 8])];
                write(&d.join(FILE), TensorFile::new(&[tensors(), extra.to_vec()].concat()).bytes());
            },
            &[FILE, "model.layers.2.mlp.up_proj.weight", "num_hidden_layers"],
        ),
        case(
            "a directory instead of the file",
            |d| {
                fs::remove_file(d.join(FILE)).unwrap();
                fs::create_dir(d.join(FILE)).unwrap();
            },
            &["neither", FILE],
        ),
        #[cfg(unix)]
        case(
            "a link to nowhere",
            |d| {
                fs::remove_file(d.join(FILE)).unwrap();
                std::os::unix::fs::symlink("nowhere", d.join(FILE)).unwrap();
            },
            &["neither", FILE],
        ),
        #[cfg(target_os = "linux")]
        case(
            "a pipe",
            |d| {
                fs::remove_file(d.join(FILE)).unwrap();
                pipe(&d.join(FILE));
            },
            &["neither", FILE],
        ),
    ]);
}

/// The last tensor, `model.norm.weight`, in a dtype of `size` bytes.
fn wide(dir: &Path, dtype: &str, size: usize) {
    let mut file = TensorFile::new(&tensors());
    let start = file.header["model.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    file.data.resize(start + 8 * size, 0);
    file.header["model.norm.weight"] =
        json!({ "dtype": dtype, "shape": [8], "data_offsets": [start, start + 8 * size] });
    write(&dir.join("model.safetensors"), file.bytes());
}

/// A named pipe that nobody writes to: reading it waits for ever.
fn pipe(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Breaks the index of a model in two shards.
fn index(edit: impl Fn(&mut Value) + 'static) -> impl Fn(&Path) {
    move |dir| {
        let mut index = write_shards(dir);
        edit(&mut index);
        write_json(&dir.join("model.safetensors.index.json"), &index);
    }
}

/// Points one tensor elsewhere.
fn placed(value: Value) -> impl Fn(&Path) {
    index(move |index| index["weight_map"][UP] = value.clone())
}

#[test]
fn shards_and_their_index() {
    const INDEX: &str = "model.safetensors.index.json";
    const FIRST: &str = "model-00001-of-00002.safetensors";
    const SECOND: &str = "model-00002-of-00002.safetensors";
    let text = |text: &'static str| {
        move |dir: &Path| {
            write_shards(dir);
            write(&dir.join(INDEX), text);
        }
    };
    let shard = |edit: fn(&Path)| {
        move |dir: &Path| {
            write_shards(dir);
            edit(&dir.join(SECOND));
        }
    };
    check(vec![
        case("missing shard", shard(|p| fs::remove_file(p).unwrap()), &[INDEX, SECOND, "missing"]),
        case("truncated shard", shard(|p| write(p, &fs::read(p).unwrap()[..300])), &[SECOND, "not a valid"]),
        case("empty shard", shard(|p| write(p, "")), &[SECOND, "not a valid", "0 bytes"]),
        case(
            "a tensor in both shards",
            shard(|p| {
                let all = tensors();
                write(p, TensorFile::new(&[&all[..1], &all[all.len().div_ceil(2)..]].concat()).bytes());
            }),
            &[SECOND, "model.embed_tokens.weight", "is also in", FIRST],
        ),
        case("index not JSON", text("{"), &[INDEX, "not valid JSON"]),
        case("index an array", text("[]"), &[INDEX, "expected a JSON object", "an array"]),
        case("index without weight_map", text("{}"), &[INDEX, "weight_map is missing"]),
        case("weight_map a list", text(r#"{"weight_map": []}"#), &[INDEX, "weight_map", "not an object"]),
        case("empty weight_map", text(r#"{"weight_map": {}}"#), &[INDEX, "names no tensor"]),
        case("a number as shard", placed(json!(7)), &[INDEX, UP, "found 7"]),
        case("null as shard", placed(Value::Null), &[INDEX, UP, "found null"]),
        case("path traversal", placed(json!("../model/model-00002-of-00002.safetensors")), &[INDEX, UP, "file name"]),
        case("absolute path", placed(json!("/etc/passwd")), &[INDEX, UP, "/etc/passwd"]),
        case("backslashes", placed(json!("..\\x.safetensors")), &[INDEX, UP, "file name"]),
        case("parent as shard", placed(json!("..")), &[INDEX, UP, "file name"]),
        case("itself as shard", placed(json!(".")), &[INDEX, "missing"]),
        case("no name as shard", placed(json!("")), &[INDEX, UP, "file name"]),
        case("a zero byte in the name", placed(json!("a\0b")), &[INDEX, "missing"]),
        case("tensor in the wrong shard", placed(json!(FIRST)), &[INDEX, UP, FIRST, "does not hold it"]),
        case("config as shard", placed(json!("config.json")), &["config.json", "not a valid safetensors file"]),
        case(
            "a tensor that is nowhere",
            index(|i| i["weight_map"]["model.extra.weight"] = json!(SECOND)),
            &[INDEX, "model.extra.weight", SECOND, "does not hold it"],
        ),
        case(
            "shards without their index",
            |d| {
                write_shards(d);
                fs::remove_file(d.join(INDEX)).unwrap();
            },
            &["neither", INDEX],
        ),
    ]);
}

/// Changes one field of `config.json`.
fn field(name: &'static str, value: Value) -> impl Fn(&Path) {
    fields(json!({ name: value }))
}

/// Changes fields of `config.json`.
fn fields(changes: Value) -> impl Fn(&Path) {
    move |dir| {
        let mut config = tiny::config();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        write_json(&dir.join("config.json"), &config);
    }
}

/// Replaces one value in the text of `config.json`, by text that need not be JSON.
fn literal(name: &'static str, text: &'static str) -> impl Fn(&Path) {
    move |dir| {
        let mut config = tiny::config();
        config[name] = json!("HERE");
        write(&dir.join("config.json"), config.to_string().replace("\"HERE\"", text));
    }
}

/// Changes the rope rules.
fn rope(changes: Value) -> impl Fn(&Path) {
    let mut rules = tiny::config()["rope_scaling"].clone();
    rules.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    field("rope_scaling", rules)
}

/// Makes it another architecture, with these fields.
fn architecture(name: &'static str, changes: Value) -> impl Fn(&Path) {
    let mut all = json!({ "architectures": [name], "rope_scaling": null });
    all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    fields(all)
}

/// Phi-3 with these long factors, and those rules changed.
fn long_rope(long_factor: Value, changes: Value) -> impl Fn(&Path) {
    let mut rules = json!({ "type": "longrope", "short_factor": [1.0, 1.5], "long_factor": long_factor });
    rules.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    architecture("Phi3ForCausalLM", json!({ "rope_scaling": rules, "original_max_position_embeddings": 16 }))
}

#[test]
fn architectures() {
    const FILE: &str = "config.json";
    let opt = |changes: Value| {
        let mut all = json!({ "ffn_dim": 12, "num_key_value_heads": null });
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        architecture("OPTForCausalLM", all)
    };
    let qwen = |changes: Value| architecture("Qwen2ForCausalLM", changes);
    check(vec![
        case(
            "long factors of another length",
            long_rope(json!([1.0, 2.0, 3.0]), json!({})),
            &[FILE, "rope_scaling.long_factor", "2 entries", "found 3"],
        ),
        case("no long factors", long_rope(Value::Null, json!({})), &[FILE, "rope_scaling.long_factor is missing"]),
        case("a long factor of 0", long_rope(json!([1.0, 0]), json!({})), &[FILE, "long_factor", "above 0"]),
        case("long factors a number", long_rope(json!(4), json!({})), &[FILE, "long_factor", "a list", "found 4"]),
        case(
            "short factors of strings",
            long_rope(json!([1.0, 2.0]), json!({ "short_factor": ["1", "2"] })),
            &[FILE, "short_factor", "a list of finite numbers"],
        ),
        case(
            "an attention factor of 0",
            long_rope(json!([1.0, 2.0]), json!({ "attention_factor": 0 })),
            &[FILE, "rope_scaling.attention_factor", "above 0"],
        ),
        case(
            "an odd part of a head rotated",
            architecture("Phi3ForCausalLM", json!({ "partial_rotary_factor": 0.3 })),
            &[FILE, "partial_rotary_factor", "0.3", "1 of 4 dimensions", "even"],
        ),
        case(
            "more than a head rotated",
            architecture("Phi3ForCausalLM", json!({ "partial_rotary_factor": 1.5 })),
            &[FILE, "partial_rotary_factor", "1.5"],
        ),
        case(
            "yarn without a factor",
            qwen(json!({ "rope_scaling": { "type": "yarn" } })),
            &[FILE, "rope_scaling.factor is missing"],
        ),
        case(
            "a factor of one type of layer",
            architecture(
                "Gemma3ForCausalLM",
                json!({ "rope_parameters": { "full_attention": { "rope_type": "linear", "factor": 0.5 } } }),
            ),
            &[FILE, "rope_parameters.full_attention.factor", "0.5"],
        ),
        case(
            "an unknown type of layer",
            qwen(json!({ "layer_types": ["full_attention", "linear_attention"] })),
            &[FILE, "layer_types", "entry 1", "linear_attention", "sliding_attention"],
        ),
        case(
            "types of more layers",
            qwen(json!({ "layer_types": ["full_attention", "full_attention", "full_attention"] })),
            &[FILE, "layer_types", "3 entries", "num_hidden_layers = 2"],
        ),
        case("types a string", qwen(json!({ "layer_types": "full_attention" })), &[FILE, "layer_types", "a list"]),
        case("types of numbers", qwen(json!({ "layer_types": [0, 1] })), &[FILE, "layer_types", "a list of strings"]),
        case(
            "a window that is switched off but used",
            qwen(json!({ "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4 })),
            &[FILE, "sliding_window", "switched off", "layer_types"],
        ),
        case(
            "a window of 0",
            architecture("MistralForCausalLM", json!({ "sliding_window": 0 })),
            &[FILE, "sliding_window", "an integer in 1..="],
        ),
        case(
            "a soft cap below 0",
            architecture("Gemma2ForCausalLM", json!({ "attn_logit_softcapping": -50.0 })),
            &[FILE, "attn_logit_softcapping", "above 0"],
        ),
        case(
            "a query scale of 0",
            architecture("Gemma2ForCausalLM", json!({ "query_pre_attn_scalar": 0 })),
            &[FILE, "query_pre_attn_scalar", "above 0"],
        ),
        case(
            "attention in both directions",
            architecture("Gemma3ForCausalLM", json!({ "use_bidirectional_attention": true })),
            &[FILE, "use_bidirectional_attention", "causal"],
        ),
        case(
            "a model that sees images",
            architecture("Gemma3ForConditionalGeneration", json!({})),
            &[FILE, "Gemma3ForConditionalGeneration", "not supported", "Gemma3ForCausalLM"],
        ),
        case(
            "norms after OPT's blocks",
            opt(json!({ "do_layer_norm_before": false })),
            &[FILE, "do_layer_norm_before", "must be true", "350M"],
        ),
        case(
            "OPT without its last norm",
            opt(json!({ "_remove_final_layer_norm": true })),
            &[FILE, "_remove_final_layer_norm", "must be false"],
        ),
        case(
            "narrower embeddings",
            opt(json!({ "word_embed_proj_dim": 4 })),
            &[FILE, "word_embed_proj_dim", "hidden_size (8)", "found 4"],
        ),
        case("OPT without neurons", opt(json!({ "ffn_dim": null })), &[FILE, "ffn_dim is missing"]),
        case(
            "OPT's activation",
            opt(json!({ "activation_function": "swoosh" })),
            &[FILE, "activation_function", "swoosh"],
        ),
        case(
            "another architecture's weights",
            opt(json!({})),
            &["model.decoder.embed_tokens.weight", "no such tensor"],
        ),
        case(
            "norms that are not there",
            architecture("Qwen3ForCausalLM", json!({})),
            &["model.layers.0.self_attn.q_norm.weight", "no such tensor"],
        ),
    ]);
}

#[test]
fn configurations() {
    const FILE: &str = "config.json";
    let text = |text: &'static str| move |dir: &Path| write(&dir.join(FILE), text);
    let mut cases = vec![
        case("missing", |d| fs::remove_file(d.join(FILE)).unwrap(), &["model", "has no config.json"]),
        case(
            "a directory instead",
            |d| {
                fs::remove_file(d.join(FILE)).unwrap();
                fs::create_dir(d.join(FILE)).unwrap();
            },
            &["has no config.json"],
        ),
        case("empty", text(""), &[FILE, "not valid JSON"]),
        case("not JSON", text("hidden_size: 8"), &[FILE, "not valid JSON"]),
        case("not UTF-8", |d| write(&d.join(FILE), b"{\"a\": \"\xff\"}"), &[FILE, "not valid JSON"]),
        case("nested deep", |d| write(&d.join(FILE), "[".repeat(1 << 20)), &[FILE, "not valid JSON"]),
        case("an array", text("[]"), &[FILE, "expected a JSON object", "an array"]),
        case("null", text("null"), &[FILE, "expected a JSON object", "null"]),
        case("no fields", text("{}"), &[FILE, "architectures"]),
        case(
            "longer than any config",
            |d| fs::File::options().write(true).open(d.join(FILE)).unwrap().set_len(1 << 40).unwrap(),
            &[FILE, "bytes long"],
        ),
        case("NaN literal", literal("rms_norm_eps", "NaN"), &[FILE, "not valid JSON"]),
        case("Infinity literal", literal("rope_theta", "Infinity"), &[FILE, "not valid JSON"]),
        case("eps beyond any number", literal("rms_norm_eps", "1e400"), &[FILE, "not valid JSON"]),
        case("eps beyond f32", literal("rms_norm_eps", "1e300"), &[FILE, "rms_norm_eps", "finite"]),
        case("eps below f32", literal("rms_norm_eps", "1e-300"), &[FILE, "rms_norm_eps", "above 0"]),
        case("eps 0", field("rms_norm_eps", json!(0.0)), &[FILE, "rms_norm_eps", "above 0"]),
        case("eps negative", field("rms_norm_eps", json!(-1e-5)), &[FILE, "rms_norm_eps", "above 0"]),
        case("eps a string", field("rms_norm_eps", json!("NaN")), &[FILE, "rms_norm_eps", "NaN"]),
        case("theta 0", field("rope_theta", json!(0)), &[FILE, "rope_theta", "above 0"]),
        case(
            "heads do not divide",
            fields(json!({ "num_attention_heads": 3, "num_key_value_heads": 2 })),
            &[FILE, "num_key_value_heads", "divide num_attention_heads (3)"],
        ),
        case(
            "more key heads than heads",
            fields(json!({ "num_attention_heads": 2, "num_key_value_heads": 4 })),
            &[FILE, "num_key_value_heads", "found 4"],
        ),
        case("odd head_dim", field("head_dim", json!(5)), &[FILE, "head_dim", "even", "found 5"]),
        case(
            "hidden size not a multiple of heads",
            fields(json!({ "head_dim": null, "num_attention_heads": 3, "num_key_value_heads": 3 })),
            &[FILE, "hidden_size", "multiple of num_attention_heads (3)"],
        ),
        case(
            "heads whose width overflows",
            fields(json!({ "num_attention_heads": 1 << 24, "num_key_value_heads": 1 << 24, "head_dim": 1 << 16 })),
            &[FILE, "head_dim", "num_attention_heads"],
        ),
        case("other head_dim than the weights", field("head_dim", json!(8)), &["q_proj", "[16, 8]", "[8, 8]"]),
        case(
            "more layers than the weights",
            field("num_hidden_layers", json!(3)),
            &["model.layers.2.", "no such tensor"],
        ),
        case("fewer layers than the weights", field("num_hidden_layers", json!(1)), &["model.layers.1."]),
        case(
            "untied, without a head",
            field("tie_word_embeddings", json!(false)),
            &["lm_head.weight", "no such tensor"],
        ),
        case("biases that are not there", field("mlp_bias", json!(true)), &["mlp.gate_proj.bias", "no such tensor"]),
        case("unknown activation", field("hidden_act", json!("swoosh")), &[FILE, "hidden_act", "swoosh", "silu"]),
        case("activation a number", field("hidden_act", json!(1)), &[FILE, "hidden_act", "a string"]),
        case(
            "unknown architecture",
            field("architectures", json!(["MambaForCausalLM"])),
            &[FILE, "architectures", "MambaForCausalLM", "LlamaForCausalLM"],
        ),
        case("two architectures", field("architectures", json!(["A", "B"])), &[FILE, "architectures", "one name"]),
        case("architecture a number", field("architectures", json!([1])), &[FILE, "architectures"]),
        case("architectures a string", field("architectures", json!("Llama")), &[FILE, "architectures", "Llama"]),
        case(
            "only an unknown model_type",
            fields(json!({ "architectures": null, "model_type": "t5" })),
            &[FILE, "architectures", "t5"],
        ),
        case(
            "unknown rope type",
            rope(json!({ "rope_type": "proportional" })),
            &[FILE, "rope_scaling.rope_type", "proportional", "linear", "longrope"],
        ),
        case("rope type a number", rope(json!({ "rope_type": 3 })), &[FILE, "rope_scaling.rope_type", "a string"]),
        case("rope factor below 1", rope(json!({ "factor": 0.5 })), &[FILE, "rope_scaling.factor", "0.5"]),
        case("rope factor a string", rope(json!({ "factor": "NaN" })), &[FILE, "rope_scaling.factor", "NaN"]),
        case("rope factor huge", rope(json!({ "factor": 1e30 })), &[FILE, "rope_scaling.factor", "1..=1024"]),
        case("rope factor missing", rope(json!({ "factor": null })), &[FILE, "rope_scaling.factor is missing"]),
        case(
            "linear rope factor negative",
            rope(json!({ "rope_type": "linear", "factor": -2.0 })),
            &[FILE, "rope_scaling.factor", "-2"],
        ),
        case("low frequency above high", rope(json!({ "low_freq_factor": 4.5 })), &[FILE, "high_freq_factor", "4.5"]),
        case(
            "equal frequencies",
            rope(json!({ "low_freq_factor": 4.0 })),
            &[FILE, "high_freq_factor", "low_freq_factor"],
        ),
        case("frequency 0", rope(json!({ "low_freq_factor": 0 })), &[FILE, "rope_scaling.low_freq_factor", "above 0"]),
        case(
            "no original length",
            rope(json!({ "original_max_position_embeddings": null })),
            &[FILE, "rope_scaling.original_max_position_embeddings is missing"],
        ),
        case("rope rules a list", field("rope_scaling", json!([1])), &[FILE, "rope_scaling", "an object"]),
        case(
            "rope parameters with a bad theta",
            field("rope_parameters", json!({ "rope_theta": -1.0, "rope_type": "default" })),
            &[FILE, "rope_parameters.rope_theta", "-1"],
        ),
        case("bool as string", field("attention_bias", json!("false")), &[FILE, "attention_bias", "true or false"]),
        case("bool as number", field("tie_word_embeddings", json!(1)), &[FILE, "tie_word_embeddings", "true or false"]),
        case("eos a string", field("eos_token_id", json!("</s>")), &[FILE, "eos_token_id", "</s>"]),
        case("eos negative", field("eos_token_id", json!(-1)), &[FILE, "eos_token_id", "-1"]),
        case("eos a fraction", field("eos_token_id", json!([1, 2.5])), &[FILE, "eos_token_id", "2.5"]),
        case("eos lists in a list", field("eos_token_id", json!([[1]])), &[FILE, "eos_token_id", "[[1]]"]),
        case("eos beyond 32 bits", field("eos_token_id", json!(1u64 << 32)), &[FILE, "eos_token_id", "4294967296"]),
        case(
            "eos in generation_config.json",
            |d| write(&d.join("generation_config.json"), r#"{"eos_token_id": "x"}"#),
            &["generation_config.json", "eos_token_id"],
        ),
        case(
            "generation_config.json not JSON",
            |d| write(&d.join("generation_config.json"), "{,}"),
            &["generation_config.json", "not valid JSON"],
        ),
        #[cfg(target_os = "linux")]
        case(
            "generation_config.json a pipe",
            |d| {
                fs::remove_file(d.join("generation_config.json")).unwrap();
                pipe(&d.join("generation_config.json"));
            },
            &["generation_config.json", "not a regular file"],
        ),
    ];
    const SIZES: [&str; 8] = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
    ];
    for name in SIZES {
        for value in
            [json!(0), json!(-1), json!(8.5), json!(1e18), json!(u64::MAX), json!("8"), json!([8]), json!(true)]
        {
            cases.push(case(name, field(name, value), &[FILE, name, "an integer in 1..="]));
        }
        if !["num_key_value_heads", "head_dim", "max_position_embeddings"].contains(&name) {
            cases.push(case(name, field(name, Value::Null), &[FILE, name, "is missing"]));
        }
    }
    // Sizes at the limit are no error of the configuration: the weights are what does not fit, and nothing is allocated.
    for name in ["hidden_size", "intermediate_size", "vocab_size"] {
        cases.push(case(name, field(name, json!(1 << 24)), &["model.safetensors", "16777216"]));
    }
    check(cases);
}

#[test]
fn directories() {
    let gone = |dir: &Path| fs::remove_dir_all(dir).unwrap();
    check(vec![
        case("no directory", gone, &["model", "is not a directory", "Hugging Face model directory"]),
        case(
            "a file instead of a directory",
            move |d| {
                gone(d);
                write(d, "text");
            },
            &["model", "is not a directory"],
        ),
        case(
            "an empty directory",
            move |d| {
                gone(d);
                fs::create_dir(d).unwrap();
            },
            &["model", "has no config.json"],
        ),
    ]);
}

#[test]
fn tokenizers() {
    const FILE: &str = "tokenizer.json";
    let edited = |key: &'static str, value: Value| {
        move |dir: &Path| {
            let mut tokenizer = tiny::tokenizer();
            tokenizer[key] = value.clone();
            write_json(&dir.join(FILE), &tokenizer);
        }
    };
    check(vec![
        case("missing", |d| fs::remove_file(d.join(FILE)).unwrap(), &[FILE, "is missing"]),
        case("empty", |d| write(&d.join(FILE), ""), &["tokenizer", FILE]),
        case("not JSON", |d| write(&d.join(FILE), "{\"model\":"), &["tokenizer", FILE]),
        case("an array", |d| write(&d.join(FILE), "[]"), &["tokenizer", FILE]),
        case("not UTF-8", |d| write(&d.join(FILE), [0xff, 0xfe]), &["tokenizer", FILE]),
        case("no model", edited("model", Value::Null), &["tokenizer", FILE]),
        case("unknown model", edited("model", json!({ "type": "Words" })), &["tokenizer", FILE]),
        case("version a number", edited("version", json!(2)), &["tokenizer", FILE]),
        case("unknown pre-tokenizer", edited("pre_tokenizer", json!({ "type": "?" })), &["tokenizer", FILE]),
        case(
            "another model's",
            edited("model", json!({ "type": "WordLevel", "vocab": { "w3": 99, "w0": 0 }, "unk_token": "w0" })),
            &["id 99", "vocabulary of 16", "another model's"],
        ),
    ]);
}

/// Changes one field of a good `sparrow.json`.
fn sidecar_field(name: &'static str, value: Value) -> impl Fn(&Path) {
    sidecar(move |sidecar| {
        sidecar.insert(name.to_owned(), value.clone());
    })
}

/// A field of the sidecar's `lowrank`.
fn low_rank_field(name: &'static str, value: Value) -> impl Fn(&Path) {
    sidecar(move |sidecar| {
        sidecar["method"]["lowrank"][name] = value.clone();
    })
}

fn sidecar(edit: impl Fn(&mut Map<String, Value>) + 'static) -> impl Fn(&Path) {
    move |dir| {
        let mut sidecar = write_sidecar(dir);
        edit(sidecar.as_object_mut().unwrap());
        write_json(&dir.join("sparrow.json"), &sidecar);
    }
}

/// Writes predictors of these tensors beside a good `sparrow.json`.
fn predictors(edit: impl Fn(&mut Vec<(String, Vec<usize>)>) + 'static) -> impl Fn(&Path) {
    move |dir| {
        write_sidecar(dir);
        let mut all = tiny::predictors();
        edit(&mut all);
        write(&dir.join("sparrow.safetensors"), TensorFile::new(&all).bytes());
    }
}

#[test]
fn sidecars() {
    const FILE: &str = "sparrow.json";
    const TENSORS: &str = "sparrow.safetensors";
    check(vec![
        case(
            "another version",
            sidecar_field("format_version", json!(99)),
            &[FILE, "format_version", "expected 2", "99"],
        ),
        case("no version", sidecar(|s| drop(s.remove("format_version"))), &[FILE, "format_version", "null"]),
        case("not an object", |d| write(&d.join(FILE), "[1]"), &[FILE, "format_version"]),
        case("not JSON", |d| write(&d.join(FILE), "{"), &[FILE, "not valid JSON"]),
        case("a directory", |d| fs::create_dir(d.join(FILE)).unwrap(), &[FILE, "not a regular file"]),
        case("unknown field", sidecar_field("treshold", json!(1)), &[FILE, "treshold"]),
        case(
            "missing field",
            sidecar(|s| drop(s["method"]["lowrank"].as_object_mut().unwrap().remove("thresholds"))),
            &[FILE, "thresholds"],
        ),
        case("missing quality", sidecar(|s| drop(s.remove("quality"))), &[FILE, "quality"]),
        case(
            "too few thresholds",
            low_rank_field("thresholds", json!([{ "fixed": 0.0 }])),
            &[FILE, "thresholds", "1 entries", "2 layers"],
        ),
        case(
            "too many truths",
            sidecar_field("true_active_above", json!([0, 0, 0])),
            &[FILE, "true_active_above", "3"],
        ),
        case("another model's fingerprint", sidecar_field("fingerprint", json!("abc")), &[FILE, "fingerprint", "abc"]),
        case(
            "another model's weights",
            |d| {
                write_sidecar(d);
                let mut file = TensorFile::new(&tensors());
                file.data.iter_mut().for_each(|b| *b ^= 1);
                write(&d.join("model.safetensors"), file.bytes());
            },
            &[FILE, "fingerprint", "not its model"],
        ),
        case(
            "NaN threshold",
            low_rank_field("thresholds", json!([{ "fixed": null }, { "fixed": 0 }])),
            &[FILE, "null"],
        ),
        case(
            "threshold beyond f32",
            low_rank_field("thresholds", json!([{ "fixed": 0 }, { "fixed": 1e300 }])),
            &[FILE, "thresholds", "entry 1", "finite"],
        ),
        case(
            "quantile below 0",
            low_rank_field("thresholds", json!([{ "quantile": -5 }, { "fixed": 0 }])),
            &[FILE, "thresholds", "entry 0", "quantile"],
        ),
        case(
            "top 0",
            low_rank_field("thresholds", json!([{ "fixed": 0 }, { "top-k": 0 }])),
            &[FILE, "thresholds", "entry 1"],
        ),
        case("unknown rule", low_rank_field("thresholds", json!([{ "magic": 1 }, { "fixed": 0 }])), &[FILE, "magic"]),
        case(
            "truth below 0",
            sidecar_field("true_active_above", json!([0, -1])),
            &[FILE, "true_active_above", "entry 1"],
        ),
        case("truth beyond f32", sidecar_field("true_active_above", json!([1e300, 0])), &[FILE, "true_active_above"]),
        case("unknown method", sidecar_field("method", json!({ "magic": {} })), &[FILE, "method", "magic", "lowrank"]),
        case("two methods", sidecar(|s| s["method"]["gate"] = json!({ "thresholds": [] })), &[FILE, "method"]),
        case("gate with a rank", sidecar_field("method", json!({ "gate": { "rank": 2 } })), &[FILE, "rank"]),
        case("low rank without rank", low_rank_field("rank", Value::Null), &[FILE, "rank", "null"]),
        case(
            "inputs of too few layers",
            sidecar_field("method", json!({ "input": { "thresholds": [vec![0.0; 7]] } })),
            &[FILE, "thresholds", "1 entries", "2 layers"],
        ),
        case(
            "inputs of six projections",
            sidecar_field("method", json!({ "input": { "thresholds": [vec![0.0; 6], vec![0.0; 7]] } })),
            &[FILE, "method", "7"],
        ),
        case(
            "negative input threshold",
            sidecar_field("method", json!({ "input": { "thresholds": [vec![0.0; 7], vec![-1.0; 7]] } })),
            &[FILE, "thresholds", "entry 1"],
        ),
        case(
            "a layer to skip that is not there",
            sidecar_field("method", json!({ "skip": { "attention": [], "mlp": [0, 2] } })),
            &[FILE, "skip", "layer 2", "2 layers"],
        ),
        case("rank 0", low_rank_field("rank", json!(0)), &[FILE, "rank", "0"]),
        case("rank above the hidden size", low_rank_field("rank", json!(9)), &[FILE, "rank", "9"]),
        case("rank huge", low_rank_field("rank", json!(u64::MAX)), &[FILE, "rank"]),
        case("rank negative", low_rank_field("rank", json!(-1)), &[FILE, "-1"]),
        case(
            "rank of other predictors",
            low_rank_field("rank", json!(3)),
            &[TENSORS, "predictor.a", "[3, 8]", "[2, 8]"],
        ),
        case(
            "predictors missing",
            |d| {
                write_sidecar(d);
                fs::remove_file(d.join(TENSORS)).unwrap();
            },
            &[TENSORS],
        ),
        case(
            "predictors truncated",
            |d| {
                write_sidecar(d);
                let bytes = fs::read(d.join(TENSORS)).unwrap();
                write(&d.join(TENSORS), &bytes[..bytes.len() - 1]);
            },
            &[TENSORS, "not a valid safetensors file"],
        ),
        #[cfg(target_os = "linux")]
        case(
            "predictors a pipe",
            |d| {
                write_sidecar(d);
                fs::remove_file(d.join(TENSORS)).unwrap();
                pipe(&d.join(TENSORS));
            },
            &[TENSORS, "not a regular file"],
        ),
        case(
            "a predictor of another shape",
            predictors(|all| all[4].1 = vec![2, 12]),
            &[TENSORS, "sparrow.layers.1.predictor.b", "[12, 2]", "[2, 12]"],
        ),
        case(
            "a predictor missing",
            predictors(|all| drop(all.pop())),
            &["sparrow.layers.1.predictor.bias", "no such tensor"],
        ),
        case(
            "a predictor named like a weight",
            predictors(|all| all.push((UP.to_owned(), vec![12, 8]))),
            &[TENSORS, UP, "is also in", "model.safetensors"],
        ),
    ]);
}
