//! The page of plots that `sparrow sparsify --report` writes: one file, nothing loaded from elsewhere.

use std::fmt::Write;
use std::path::Path;

use anyhow::bail;
use sparrow_tools::sparsify::Sparsified;

use crate::html::{escape, page};
use crate::output::{percent, write_whole};
use crate::plot::{Line, Plot};

/// Refuses a path that could not be written later.
pub fn check(path: &Path) -> anyhow::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() || path.is_dir() {
        bail!("--report {}: is not a file in a directory that exists", path.display());
    }
    Ok(())
}

/// Writes the page.
pub fn write(path: &Path, model: &str, made: &Sparsified) -> anyhow::Result<()> {
    write_whole(path, html(model, made).as_bytes())
}

fn html(model: &str, made: &Sparsified) -> String {
    let file = &made.file;
    let e = &file.quality.evaluation;
    let mut body = String::new();
    let title = format!("Sparsity of {model}");
    let _ = write!(
        body,
        "<h1>{}</h1><p>{}, calibrated on {} tokens of {} (SHA-256 {}).</p>\
         <p>On the {}: perplexity {:.4}, dense {:.4} ({:+.2} %); KL divergence {:.2e} nats (99 % of tokens below {:.2e}); \
         same top token {}; {} active.</p>",
        escape(&title),
        escape(&file.record().map_or_else(|| "dense".to_owned(), |record| record.describe())),
        file.calibration.tokens,
        escape(&file.calibration.file),
        file.calibration.sha256,
        escape(&file.quality.text),
        e.perplexity,
        e.dense_perplexity,
        (e.perplexity / e.dense_perplexity - 1.0) * 100.0,
        e.kl_mean,
        e.kl_p99,
        percent(e.top1_agreement),
        percent(e.active_fraction),
    );
    let by_layer = |values: &[f64]| values.iter().enumerate().map(|(i, &v)| (i as f64, v)).collect::<Vec<_>>();
    let selection = &file.quality.selection;
    let mut active = vec![Line::new("active", by_layer(&e.active_fraction_per_layer))];
    if !selection.is_empty() {
        let truly: Vec<f64> = selection.iter().map(|q| q.true_active_fraction).collect();
        active.push(Line::new("truly active", by_layer(&truly)));
    }
    body +=
        &Plot { title: "Active fraction by layer", x: "layer", y: "fraction", from_zero: true, lines: active }.svg();
    if !selection.is_empty() {
        let recall: Vec<f64> = selection.iter().map(|q| q.recall).collect();
        let precision: Vec<f64> = selection.iter().map(|q| q.precision).collect();
        let lines = vec![Line::new("recall", by_layer(&recall)), Line::new("precision", by_layer(&precision))];
        let title = "Recall and precision of truly active neurons";
        body += &Plot { title, x: "layer", y: "fraction", from_zero: true, lines }.svg();
        let lines = vec![Line::new("overlap", by_layer(&file.quality.overlap))];
        let title = "Active neurons that were active for the token before";
        body += &Plot { title, x: "layer", y: "fraction", from_zero: true, lines }.svg();
    }
    if !file.search.is_empty() {
        let mut points: Vec<(f64, f64)> = file.search.iter().map(|t| (t.active_fraction, t.perplexity)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let dense = file.search[0].dense_perplexity;
        let ends = [points[0].0, 1.0].map(|x| (x, dense)).to_vec();
        let lines = vec![Line::new("measured", points), Line::new("dense", ends)];
        let title = "Perplexity against active fraction";
        body += &Plot { title, x: "active fraction", y: "perplexity", from_zero: false, lines }.svg();
        body += "<table><tr><th>asked for</th><th>active</th><th>perplexity</th><th>dense</th><th>KL mean</th></tr>";
        for t in &file.search {
            let _ = write!(
                body,
                "<tr><td>{}</td><td>{}</td><td>{:.4}</td><td>{:.4}</td><td>{:.2e}</td></tr>",
                percent(t.target_active),
                percent(t.active_fraction),
                t.perplexity,
                t.dense_perplexity,
                t.kl_mean
            );
        }
        body += "</table>";
    }
    for (layer, curve) in made.curves.iter().enumerate() {
        const BINS: usize = 64;
        let (low, high, all, active) = curve.histogram(BINS);
        let at = |(i, &v): (usize, &f64)| (f64::from(low) + f64::from(high - low) * (i as f64 + 0.5) / BINS as f64, v);
        let lines = vec![
            Line::new("all", all.iter().enumerate().map(at).collect()),
            Line::new("truly active", active.iter().enumerate().map(at).collect()),
        ];
        let title = format!("Scores of layer {layer}");
        body += &Plot { title: &title, x: "score", y: "share of neurons", from_zero: true, lines }.svg();
    }
    page(&title, &body)
}
