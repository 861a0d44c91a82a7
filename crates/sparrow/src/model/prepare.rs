//! From a selector's name to one that is ready for a model: calibrated values, or a rule for all layers.

use super::Model;
use crate::backend::Cpu;
use crate::checkpoint::Placement;
use crate::error::{Error, Result};
use crate::sparsity::{InputThresholds, Method, Selector, SelectorSpec, SignBits, Threshold, deciding, is_relu_family};

/// # Errors
/// If the selector needs calibration that the model's directory does not carry, or an option is out of range.
pub(super) fn selector(model: &Model, selector: &SelectorSpec, cpu: &Cpu) -> Result<Selector> {
    let layers = model.spec.num_layers;
    let calibrated = model.sidecar.as_ref().map(|sidecar| &sidecar.file.method);
    // On an exact zero nothing is lost, so nothing needs calibration.
    let relu = is_relu_family(model.spec.activation).then(|| vec![Threshold::Fixed(0.0); layers]);
    let needs = |what: &str| {
        let name = selector.name();
        let message = format!("{name} needs {what}: run `sparrow sparsify MODEL -o OUT --selector {name}` first");
        Error::option("selector", message)
    };
    let or_rule = |what: &str, example: &str| needs(&format!("{what} or a rule ({}:{example})", selector.name()));
    let rule = |rule: &Option<Threshold>| rule.map(|rule| vec![rule; layers]);
    if let (SelectorSpec::Input(_), Placement::Cache(_)) = (selector, model.placement) {
        let message =
            format!("input selects inputs of all projections, not neurons: it cannot run from {}", model.placement);
        return Err(Error::option("selector", message));
    }
    Ok(match selector {
        SelectorSpec::Dense => Selector::dense(),
        SelectorSpec::Gate(given) => {
            let stored = match calibrated {
                Some(Method::Gate { thresholds }) => Some(thresholds.clone()),
                _ => relu,
            };
            let thresholds = rule(given).or(stored);
            Selector::gate(thresholds.ok_or_else(|| or_rule("calibrated thresholds", "fixed=0.1"))?)
        }
        SelectorSpec::LowRank(given) => match (calibrated, &model.sidecar) {
            (Some(Method::LowRank { look_ahead, thresholds, .. }), Some(sidecar)) => {
                let thresholds = rule(given).unwrap_or(thresholds.clone());
                Selector::low_rank(sidecar.predictors.clone(), *look_ahead, thresholds)
            }
            _ => return Err(needs("predictors")),
        },
        SelectorSpec::Sign(given) => {
            let stored = match calibrated {
                Some(Method::Sign { thresholds }) => Some(thresholds.clone()),
                _ => relu,
            };
            let thresholds = rule(given).or(stored).ok_or_else(|| or_rule("calibrated thresholds", "quantile=0.5"))?;
            let bits = |layer| SignBits::new(&cpu.compute, &deciding(layer).weight);
            Selector::sign(model.weights.layers.iter().map(bits).collect(), thresholds)
        }
        SelectorSpec::Input(given) => {
            let thresholds = match (given, calibrated) {
                (Some(rule), _) => vec![[*rule; 7]; layers],
                (None, Some(Method::Input { thresholds })) => {
                    thresholds.iter().map(|layer| layer.map(Threshold::Fixed)).collect()
                }
                _ => return Err(or_rule("calibrated thresholds", "quantile=0.4")),
            };
            Selector::input(InputThresholds(thresholds))
        }
        SelectorSpec::Skip(given) => {
            let blocks = match (given, calibrated) {
                (Some(blocks), _) => blocks.clone(),
                (None, Some(Method::Skip(blocks))) => blocks.clone(),
                _ => return Err(needs("calibrated blocks or a list of them (skip:attention=3,mlp=3-5)")),
            };
            if let Some(layer) = blocks.out_of_range(layers) {
                let message = format!("skip names layer {layer}, but the model has layers 0 to {}", layers - 1);
                return Err(Error::option("selector", message));
            }
            Selector::skip(blocks)
        }
        SelectorSpec::Forced { active, overlap } => {
            for (option, value) in [("active", *active), ("overlap", *overlap)] {
                if !(0.0..=1.0).contains(&value) {
                    return Err(Error::option(option, format!("must be in 0..=1, found {value}")));
                }
            }
            Selector::forced(&model.spec, *active, *overlap)
        }
    })
}
