//! Blocks of GGUF files: the numbers that the format's own package makes of them, bit for bit.

use serde_json::Value;
use sparrow_kernels::{BlockFormat, DType};

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn formats() -> impl Iterator<Item = (DType, &'static BlockFormat)> {
    DType::ALL.into_iter().filter_map(|dtype| Some((dtype, dtype.block()?)))
}

#[test]
fn numbers_of_every_format() {
    let cases: Value = serde_json::from_str(include_str!("../blocks/blocks.json")).unwrap();
    assert_eq!(cases.as_object().unwrap().len(), formats().count());
    for (dtype, format) in formats() {
        let case = &cases[format.name];
        assert_eq!(case["elements"], format.elements, "{}", format.name);
        let blocks: Vec<u8> = case["blocks"].as_array().unwrap().iter().flat_map(bytes).collect();
        let expected: Vec<f32> = bytes(&case["numbers"]).as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let mut found = vec![0.0; expected.len()];
        format.decode(&blocks, &mut found);
        let bits = |numbers: &[f32]| numbers.iter().map(|n| n.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&expected), bits(&found), "{}", format.name);
        assert_eq!((format.dtype(), format.name.parse()), (dtype, Ok(dtype)));
    }
}
