//! What observers count of a selector at work.

use sparrow_testing::*;
use sparrow_tools::observe::Overlap;

#[test]
fn overlap_counts_neurons_that_stay_active() {
    let (model, selector) = prepare(demo(), parse("forced:active=0.1,overlap=0.8"));
    let (layers, neurons) = (model.spec.num_layers, model.spec.intermediate_size);
    let mut overlap = Overlap::new(layers, neurons);
    let mut session = session(&cpu(), &model, selector, 1, None);
    session.observe(0, &sample_ids()[..100], &mut overlap).unwrap();
    assert!(overlap.per_layer().iter().all(|o| (o - 0.8).abs() < 0.01), "{:?}", overlap.per_layer());
}
