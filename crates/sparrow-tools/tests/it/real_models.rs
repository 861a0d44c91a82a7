//! Published models predict text as well as transformers says they do.

use sparrow::{DType, Load, Selector, Session, SessionOptions, Tokenizer};
use sparrow_testing::*;
use sparrow_tools::eval::evaluate;

#[test]
fn perplexity_is_that_of_transformers() {
    let (Some(dir), Some(text)) = (real_model("smollm2"), shared_data("text/wiki.valid.txt")) else { return };
    // Of 2048 tokens in windows of 256, their first tokens not predicted; in f32 with the weights as stored.
    const EXPECTED: f64 = 24.235;
    let text: String = std::fs::read_to_string(text).unwrap().chars().take(20_000).collect();
    let ids = Tokenizer::load(&dir).unwrap().encode(&text, false).unwrap()[..2048].to_vec();
    let open = |dtype| Load::new(&dir).dtype(dtype).cpu(cpu()).open(|_, _, _| ()).unwrap();
    let options = SessionOptions { sequences: 1, capacity: 256, kv: Default::default() };
    let [stored, int8] = [None, Some(DType::I8)].map(open);
    let [mut stored, mut int8] =
        [stored, int8].map(|loaded| Session::new(loaded.model, cpu(), Selector::dense(), options).unwrap());
    let measured = evaluate(&mut stored, &mut int8, &ids, 256, &mut (), |_| ()).unwrap();
    assert!((measured.dense_perplexity / EXPECTED - 1.0).abs() < 0.005, "{measured:?}");
    assert!(measured.kl_mean > 0.0 && measured.kl_mean < 0.1, "{measured:?}");
}
