//! What a command shows while it works or follows something: on standard error, as results go to
//! standard output.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{self, IsTerminal},
    thread,
    time::Duration,
};

/// How often a step that no bar shows says how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Shows nothing for `--json`; bars that move on a terminal, and elsewhere lines: when a step begins, and how
/// far it is.
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
        self.tell(what, &bar);
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
        self.tell(what, &bar);
        bar.with_prefix(what)
    }

    /// Announces a step where no bar can be drawn.
    fn begin(&self, what: &str) {
        if self.is_lines() {
            note!("  {what} ...");
        }
    }

    /// Says now and then how far a step is, until it is finished, where no bar can be drawn.
    fn tell(&self, what: &'static str, bar: &ProgressBar) {
        if !self.is_lines() {
            return;
        }
        let bar = bar.downgrade();
        thread::spawn(move || {
            loop {
                thread::sleep(TOLD_EVERY);
                let Some(bar) = bar.upgrade().filter(|bar| !bar.is_finished()) else {
                    return;
                };
                note!("  {what}: {}", how_far(&bar));
            }
        });
    }

    fn is_lines(&self) -> bool {
        !self.quiet && !io::stderr().is_terminal()
    }

    fn target(&self) -> ProgressDrawTarget {
        if self.quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        }
    }
}

/// `3000 of 20000, 12 s`; the message of a step without a length.
fn how_far(bar: &ProgressBar) -> String {
    let seconds = bar.elapsed().as_secs();
    match bar.length() {
        Some(length) => format!("{} of {length}, {seconds} s", bar.position()),
        None => format!("{} {seconds} s", bar.message())
            .trim_start()
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_says_how_far_it_is() {
        let bar = ProgressBar::hidden();
        bar.set_length(20);
        bar.set_position(3);
        assert_eq!(how_far(&bar), "3 of 20, 0 s");
        let spinner = ProgressBar::no_length();
        assert_eq!(how_far(&spinner), "0 s");
        spinner.set_message("2 of 24 training runs");
        assert_eq!(how_far(&spinner), "2 of 24 training runs 0 s");
    }
}
