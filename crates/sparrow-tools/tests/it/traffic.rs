//! What decoding is said to read is what it reads.

use sparrow::{DType, Load};
use sparrow_testing::*;
use sparrow_tools::traffic::weight_bytes_per_token;

#[test]
fn bytes_per_token_are_those_that_decoding_counts() {
    for selector in ["dense", "gate", "gate:quantile=0.05", "sign:sparsity=0.7", "input:quantile=0.4", "skip:mlp=1"] {
        for dtype in [None, Some(DType::I8)] {
            let load = Load::new(demo_dir()).selector(parse(selector)).dtype(dtype).cpu(cpu());
            let loaded = load.open(|_, _, _| ()).unwrap_or_else(|e| panic!("{selector}: {e}"));
            let mut session = session(&cpu(), &loaded.model, loaded.selector.clone(), 1, None);
            let ids = sample_ids();
            session.prefill(0, &ids[..16]).unwrap();
            session.reset_stats();
            for &id in &ids[16..48] {
                session.decode(&[(0, id)]).unwrap();
            }
            let stats = session.stats();
            let read = stats.layer_bytes as f64 / stats.steps as f64 + loaded.model.weights.head.byte_len() as f64;
            let said = weight_bytes_per_token(&loaded.model, &loaded.selector, &stats.active_fraction_per_layer());
            // A layer's fraction is of its weights: where down is of another type than the others, that is not quite its bytes.
            let mixed = selector.starts_with("input") && dtype.is_some();
            assert!(
                (said / read - 1.0).abs() < if mixed { 1e-2 } else { 1e-3 },
                "{selector}, {dtype:?}: {said} said, {read} read"
            );
        }
    }
}
