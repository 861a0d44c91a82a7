//! Names of selectors.

use proptest::prelude::*;
use sparrow::SelectorSpec;
use sparrow::internals::backend::Threshold;
use sparrow::internals::select::{SELECTORS, SkippedBlocks};

use super::config;

fn finite() -> impl Strategy<Value = f32> {
    any::<f32>().prop_filter("finite", |v| v.is_finite())
}

fn threshold() -> impl Strategy<Value = Threshold> {
    prop_oneof![
        finite().prop_map(Threshold::Fixed),
        finite().prop_map(Threshold::MeanStd),
        (1e-6f32..0.999_999).prop_map(Threshold::Sparsity),
        (1..=usize::MAX).prop_map(Threshold::TopK),
        (0.0..1.0f32).prop_map(Threshold::Quantile),
    ]
}

fn skipped() -> impl Strategy<Value = SkippedBlocks> {
    let layers = || proptest::collection::btree_set(0usize..4096, 0..6);
    let not_empty = |blocks: &SkippedBlocks| !(blocks.attention.is_empty() && blocks.mlp.is_empty());
    (layers(), layers())
        .prop_map(|(attention, mlp)| SkippedBlocks { attention, mlp })
        .prop_filter("something is skipped", not_empty)
}

/// A selector, made of what comes before and after its colon.
fn written(name: &str, parameters: Option<impl ToString>) -> SelectorSpec {
    let kind = SELECTORS.iter().find(|kind| kind.name() == name).unwrap();
    match parameters {
        None => SelectorSpec::calibrated(*kind),
        Some(parameters) => format!("{name}:{}", parameters.to_string()).parse().unwrap(),
    }
}

fn selector() -> impl Strategy<Value = SelectorSpec> {
    let ruled = proptest::sample::select(["gate", "lowrank", "sign", "input"].as_slice());
    prop_oneof![
        Just(SelectorSpec::dense()),
        (ruled, proptest::option::of(threshold())).prop_map(|(name, rule)| written(name, rule)),
        proptest::option::of(skipped()).prop_map(|blocks| written("skip", blocks)),
        (0.0..=1.0f32, 0.0..=1.0f32).prop_map(|(active, overlap)| SelectorSpec::forced(active, overlap)),
    ]
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn thresholds_read_back(threshold in threshold()) {
        prop_assert_eq!(threshold.to_string().parse::<Threshold>(), Ok(threshold));
        let json = serde_json::to_string(&threshold).unwrap();
        prop_assert_eq!(serde_json::from_str::<Threshold>(&json).unwrap(), threshold);
    }

    #[test]
    fn selectors_read_back(selector in selector()) {
        prop_assert_eq!(selector.to_string().parse::<SelectorSpec>(), Ok(selector));
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,24}") {
        let _ = text.parse::<Threshold>();
        let _ = text.parse::<SelectorSpec>();
    }

    #[test]
    fn almost_selectors_are_read_or_refused(
        name in "(dense|gate|lowrank|forced|Gate|)",
        sign in "[:=,]{0,2}",
        rule in "(fixed|mean-std|top-k|quantile|active|)",
        value in "(=?[-+0-9.eE]{0,12}|=nan|=inf|=1e40|=99999999999999999999)",
        rest in "(,overlap=[0-9.]{0,4}|)",
    ) {
        let text = format!("{name}{sign}{rule}{value}{rest}");
        if let Ok(selector) = text.parse::<SelectorSpec>() {
            // What was read is written as it will be read again (as text: NaN equals nothing).
            let written = selector.to_string();
            prop_assert_eq!(written.parse::<SelectorSpec>().map(|s| s.to_string()), Ok(written), "{}", text);
        }
    }
}
