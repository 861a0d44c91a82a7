//! Progress on stderr, where that is a terminal: a bar appears when work turns out to be long, so that nothing flashes.

use std::fmt::Write;
use std::io::IsTerminal;
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressState, ProgressStyle, WeakProgressBar};
use sparrow_kernels::start_thread;

use super::quiet::is_quiet;

/// Work is watched for this long before its bar may appear, and at least so much of it must be left.
const SOON: Duration = Duration::from_secs(1);
/// How often a bar is drawn, whether it moves or not.
const TICK: Duration = Duration::from_millis(200);

/// A progress bar on stderr, as soon as it is worth one; nothing where stderr is no terminal, or with `--quiet`.
pub fn progress(what: impl Into<String>, total: u64, bytes: bool) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
    let count = if bytes { "{bytes}/{total_bytes}" } else { "{human_pos}/{human_len}" };
    let style = ProgressStyle::with_template(&format!("{{msg:<24}} {{wide_bar}} {count} {{elapsed}}{{left}}"));
    let left = |state: &ProgressState, out: &mut dyn Write| {
        // A line that cannot be drawn is no reason to stop.
        let _ = match state.pos() {
            0 => Ok(()),
            _ => write!(out, ", {:#} left", indicatif::HumanDuration(state.eta())),
        };
    };
    bar.set_style(style.expect("the template is constant").with_key("left", left));
    bar.set_message(what.into());
    let bar = bar.with_finish(ProgressFinish::AndClear);
    if std::io::stderr().is_terminal() && !is_quiet() {
        let weak = bar.downgrade();
        // Where no thread can be started there is no bar.
        let _ = start_thread("progress", move || show_when_long(&weak));
    }
    bar
}

/// Waits until the work is done or turns out to be long, and then shows the bar.
fn show_when_long(bar: &WeakProgressBar) {
    loop {
        thread::sleep(TICK);
        let Some(bar) = bar.upgrade().filter(|bar| !bar.is_finished()) else { return };
        if is_long(bar.elapsed(), bar.position(), bar.length().unwrap_or(0)) {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            bar.enable_steady_tick(TICK);
            return;
        }
    }
}

/// Whether work of which so much is done after that time takes over two seconds.
fn is_long(elapsed: Duration, done: u64, total: u64) -> bool {
    match done {
        0 => elapsed >= 2 * SOON,
        _ => elapsed >= SOON && elapsed.as_secs_f64() * total.saturating_sub(done) as f64 >= done as f64,
    }
}

/// Progress bars of work in stages, one at a time.
pub struct Bars<S> {
    name: fn(S) -> &'static str,
    /// Stages that count bytes.
    bytes: fn(S) -> bool,
    current: Option<(S, ProgressBar)>,
}

impl<S: Copy + PartialEq> Bars<S> {
    /// None yet.
    pub fn new(name: fn(S) -> &'static str, bytes: fn(S) -> bool) -> Self {
        Bars { name, bytes, current: None }
    }

    /// So much is done of a stage.
    pub fn show(&mut self, stage: S, done: u64, total: u64) {
        if self.current.as_ref().is_none_or(|(s, _)| *s != stage) {
            self.clear();
            self.current = Some((stage, progress((self.name)(stage), total, (self.bytes)(stage))));
        }
        if let Some((_, bar)) = &self.current {
            bar.set_position(done);
        }
    }

    /// Takes the last bar away.
    pub fn clear(&mut self) {
        if let Some((_, bar)) = self.current.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_work_has_a_bar() {
        let seconds = Duration::from_secs_f64;
        for (elapsed, done, total, expected) in [
            (0.5, 1, 1000, false),
            (1.0, 1, 1000, true),
            // Ends within a second.
            (1.5, 90, 100, false),
            (3.0, 90, 100, false),
            // Stuck: nothing came for so long that the end is far.
            (30.0, 90, 100, true),
            (1.9, 0, 1, false),
            (2.0, 0, 1, true),
            (5.0, 7, 7, false),
        ] {
            assert_eq!(is_long(seconds(elapsed), done, total), expected, "{elapsed} s, {done} of {total}");
        }
    }
}
