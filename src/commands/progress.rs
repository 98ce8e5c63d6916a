//! What a command shows while it works or follows something: on standard error, as results go to
//! standard output.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{self, IsTerminal},
    time::Duration,
};

/// Shows nothing for `--json`; bars that move on a terminal, and elsewhere a line when a step begins.
pub(super) struct Progress {
    quiet: bool,
}

impl Progress {
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// A step that is done.
    pub(super) fn done(&self, text: &str) {
        if !self.quiet {
            note!("✓ {text}");
        }
    }

    /// A step of a known length.
    pub(super) fn bar(&self, what: &'static str, length: u64) -> ProgressBar {
        self.begin(what);
        let bar = ProgressBar::with_draw_target(Some(length), self.target());
        if let Ok(style) = ProgressStyle::with_template("  {prefix:<10} [{bar:40}] {pos}/{len}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.with_prefix(what)
    }

    /// A step whose end is not known: how long it has taken, and what is being done.
    pub(super) fn spinner(&self, what: &'static str) -> ProgressBar {
        self.begin(what);
        let bar = ProgressBar::with_draw_target(None, self.target());
        let template = "  {prefix:<10} {spinner} {elapsed:>4}  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        bar.with_prefix(what)
    }

    /// Announces a step where no bar can be drawn.
    fn begin(&self, what: &str) {
        if !self.quiet && !io::stderr().is_terminal() {
            note!("  {what} ...");
        }
    }

    fn target(&self) -> ProgressDrawTarget {
        if self.quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        }
    }
}
