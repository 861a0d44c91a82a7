use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sparrow_testing::tiny::{TensorFile, framed, tensors, write};

use super::{UP, case, check, pipe, tensor_file};

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
        case("empty", weights(|_| Vec::new()), &[FILE, "is empty"]),
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
            &[FILE, "not a regular file"],
        ),
        #[cfg(unix)]
        case(
            "a link to nowhere",
            |d| {
                fs::remove_file(d.join(FILE)).unwrap();
                std::os::unix::fs::symlink("nowhere", d.join(FILE)).unwrap();
            },
            &[FILE, "a link to nowhere"],
        ),
        #[cfg(target_os = "linux")]
        case(
            "a pipe",
            |d| {
                fs::remove_file(d.join(FILE)).unwrap();
                pipe(&d.join(FILE));
            },
            &[FILE, "not a regular file"],
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
