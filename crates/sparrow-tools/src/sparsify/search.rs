//! Which setting of a selector: as asked for, or the sparsest that keeps a wanted quality.

use std::sync::Arc;

use sparrow::internals::backend::is_relu_family;
use sparrow::internals::record::Trial;
use sparrow::internals::select::{Calibrates, Goal, Kind, Method, SELECTORS, Scores};
use sparrow::internals::spec::ModelSpec;
use sparrow::{Error, Model, Result};

use super::calibration::Calibration;
use super::options::{Progress, SparsifyOptions, Stage};
use super::task::{Task, measure};

/// Settings measured in a search.
const TRIALS: usize = 8;

/// Active fractions measured for a curve.
const CURVE: [f64; 7] = [1.0, 0.75, 0.6, 0.5, 0.4, 0.25, 0.1];

/// Whether settings must be measured to reach a goal.
pub(super) fn is_searched(goal: Goal) -> bool {
    matches!(goal, Goal::Perplexity(_) | Goal::Divergence(_))
}

fn accepts(goal: Goal, trial: &Trial) -> bool {
    match goal {
        Goal::Perplexity(rise) => trial.perplexity <= trial.dense_perplexity * (1.0 + rise),
        Goal::Divergence(most) => trial.kl_mean <= most,
        Goal::Recall(_) | Goal::Active(_) => true,
    }
}

/// What was decided, and what was tried for it.
pub(super) struct Chosen {
    pub method: Method,
    pub trials: Vec<Trial>,
}

/// Selectors that calibration finds something for.
pub fn calibrated() -> impl Iterator<Item = &'static dyn Kind> {
    SELECTORS.iter().copied().filter(|kind| kind.calibrates() != Calibrates::Nothing)
}

/// Whether active neurons are only estimated, so that a part of them can be wanted.
fn predicts(calibrates: Calibrates) -> bool {
    matches!(calibrates, Calibrates::Neurons(scores) if scores.predict())
}

/// Refuses options that cannot be used with a model.
pub(super) fn check(options: &SparsifyOptions, spec: &ModelSpec) -> Result<()> {
    let selector = &options.selector;
    let calibrates = selector.kind().calibrates();
    match calibrates {
        Calibrates::Nothing => {
            let names: Vec<&str> = calibrated().map(|kind| kind.name()).collect();
            let (last, others) = names.split_last().expect("some selectors are calibrated");
            let message = format!("must be {} or {last}, found {selector}", others.join(", "));
            return Err(Error::option("selector", message));
        }
        Calibrates::Inputs | Calibrates::Blocks if selector.parameters().is_some() => {
            let message = format!("{selector} needs no calibration: give it to generate, eval or bench as it is");
            return Err(Error::option("selector", message));
        }
        _ => {}
    }
    let fraction = |option, value: f64| match value > 0.0 && value <= 1.0 {
        true => Ok(()),
        false => Err(Error::option(option, format!("must be above 0 and at most 1, found {value}"))),
    };
    let positive = |option, value: f64| match value.is_finite() && value > 0.0 {
        true => Ok(()),
        false => Err(Error::option(option, format!("must be above 0, found {value}"))),
    };
    match options.goal {
        Some(Goal::Recall(_)) if !predicts(calibrates) => {
            let names: Vec<&str> =
                calibrated().filter(|kind| predicts(kind.calibrates())).map(|kind| kind.name()).collect();
            return Err(Error::option("recall", format!("is for {}, not for {selector}", names.join(" and "))));
        }
        Some(Goal::Recall(recall)) => fraction("recall", recall)?,
        Some(Goal::Active(active)) => fraction("target_active", active)?,
        Some(Goal::Perplexity(rise)) => positive("target_ppl", rise)?,
        Some(Goal::Divergence(most)) => positive("target_kl", most)?,
        None => {}
    }
    if options.goal.is_some() && selector.rule().is_some() {
        return Err(Error::option(
            "selector",
            format!("{selector} names its threshold: it cannot have a goal as well"),
        ));
    }
    if calibrates == Calibrates::Neurons(Scores::LowRank) {
        let most = spec.hidden_size.min(spec.intermediate_size);
        if options.rank == 0 || options.rank > most {
            return Err(Error::option("rank", format!("must be in 1..={most}, found {}", options.rank)));
        }
    } else if options.epochs > 0 || options.look_ahead {
        let option = if options.epochs > 0 { "epochs" } else { "look_ahead" };
        return Err(Error::option(option, format!("is for lowrank, not for {selector}")));
    }
    Ok(())
}

/// The setting for the goal; `ids` are what a search measures on.
pub(super) fn choose(
    task: &Task,
    model: &Arc<Model>,
    calibration: &mut Calibration,
    ids: &[u32],
    progress: &mut Progress,
) -> Result<Chosen> {
    if let Some(rule) = task.options.selector.rule() {
        return Ok(Chosen { method: calibration.with_rule(task.options, rule), trials: Vec::new() });
    }
    let relu = is_relu_family(model.spec.activation);
    let goal = task.options.goal.unwrap_or(task.options.selector.kind().default_goal(relu));
    let steps = if task.options.curve { CURVE.len() } else { 0 } + if is_searched(goal) { TRIALS } else { 0 };
    let mut trials: Vec<Trial> = Vec::new();
    let mut tried = |target_active: f64, trials: &mut Vec<Trial>| -> Result<bool> {
        let total = (steps * ids.len()) as u64;
        let before = (trials.len() * ids.len()) as u64;
        progress(Stage::Searching, before, total);
        let method = calibration.for_active(task.options, target_active);
        let measured =
            measure(task, model, calibration.selector(task, model, &method), calibration.truth(), ids, |done| {
                progress(Stage::Searching, before + done as u64, total);
            })?;
        let e = measured.evaluation;
        let mut trial = Trial {
            target_active,
            dtype: None,
            gptq: false,
            average_bits: None,
            active_fraction: e.active_fraction,
            perplexity: e.perplexity,
            dense_perplexity: e.dense_perplexity,
            kl_mean: e.kl_mean,
            accepted: true,
        };
        trial.accepted = accepts(goal, &trial);
        trials.push(trial);
        Ok(trial.accepted)
    };
    if task.options.curve {
        for active in CURVE {
            tried(active, &mut trials)?;
        }
    }
    let active = match goal {
        Goal::Recall(recall) => {
            let method = calibration.for_recall(task.options, recall);
            return Ok(Chosen { method, trials });
        }
        Goal::Active(active) => active,
        Goal::Perplexity(_) | Goal::Divergence(_) => {
            // Keeping everything is the dense model, which needs no trial.
            let (mut rejected, mut accepted) = (0.0, 1.0);
            for _ in 0..TRIALS {
                let middle = (rejected + accepted) / 2.0;
                if tried(middle, &mut trials)? { accepted = middle } else { rejected = middle }
            }
            accepted
        }
    };
    calibration.rescore(task, model, active);
    Ok(Chosen { method: calibration.for_active(task.options, active), trials })
}
