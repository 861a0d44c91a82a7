//! Evaluation scores what it can, and refuses the rest.

use std::sync::Arc;

use sparrow::{DType, Selector, Session};
use sparrow_testing::*;
use sparrow_tools::eval::evaluate;

#[test]
fn evaluation_refuses_what_it_cannot_score() {
    let (model, _) = prepare(demo(), parse("gate"));
    let new = || -> Session { session(&cpu(), &model, Selector::dense(), 1, None) };
    let (mut a, mut b) = (new(), new());
    assert!(evaluate(&mut a, &mut b, &[1], 8, &mut (), |_| ()).unwrap_err().to_string().contains("text"));
    assert!(evaluate(&mut a, &mut b, &[1, 2], 1, &mut (), |_| ()).unwrap_err().to_string().contains("window"));
    let mut other = session(&cpu(), &Arc::new(random_model(&odd_spec(), DType::F32, 1)), Selector::dense(), 1, None);
    let message = evaluate(&mut other, &mut a, &[1, 2], 8, &mut (), |_| ()).unwrap_err().to_string();
    assert_eq!(message, "reference: has a vocabulary of 101, the model it is compared with one of 2048");
    let same = evaluate(&mut new(), &mut new(), &sample_ids()[..100], 128, &mut (), |_| ()).unwrap();
    assert_eq!((same.tokens, same.kl_mean, same.top1_agreement, same.active_fraction), (99, 0.0, 1.0, 1.0));
    assert_eq!(same.perplexity, same.dense_perplexity);
}
