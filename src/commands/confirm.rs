//! The question before a command does what cannot be undone: asked at a terminal, and answered by
//! `--yes` where there is none.

use super::{CommandError, output};
use clap::Args;
use std::io::{self, BufRead, IsTerminal};

#[derive(Debug, Args, Default)]
pub(crate) struct Confirm {
    /// Do not ask before what cannot be undone; required where standard input is not a terminal.
    #[arg(long, short)]
    yes: bool,
}

impl Confirm {
    /// Returns once the user has agreed to `what`, which is about to happen.
    pub(crate) fn ask(&self, what: &str) -> Result<(), CommandError> {
        let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
        self.decide(what, terminal, || {
            output::remark(format_args!("{what}.\nGo on? [y/N] "));
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line).map(|_| line)
        })
    }

    fn decide(
        &self,
        what: &str,
        terminal: bool,
        answer: impl FnOnce() -> io::Result<String>,
    ) -> Result<(), CommandError> {
        if self.yes {
            return Ok(());
        }
        if !terminal {
            let text = format!("{what}; there is no terminal to ask at: confirm it with --yes");
            return Err(CommandError::Usage(text));
        }
        let line = answer().map_err(|e| CommandError::Failed(e.to_string()))?;
        match line.trim().to_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(CommandError::Failed("nothing was changed".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_taken_as_one() {
        let asked = |line: &str| {
            let answer = || Ok(line.to_owned());
            Confirm::default().decide("it ends", true, answer).is_ok()
        };
        assert!(["y\n", "yes\n", " Y \n", "YES"].into_iter().all(asked));
        assert!(
            !["", "\n", "n\n", "no\n", "yy\n", "yes please\n"]
                .into_iter()
                .any(asked)
        );
    }

    #[test]
    fn without_a_terminal_it_is_confirmed_by_yes_or_refused() {
        let nobody = || -> io::Result<String> { panic!("nobody is there") };
        assert!(
            Confirm { yes: true }
                .decide("it ends", false, nobody)
                .is_ok()
        );
        assert!(
            Confirm { yes: true }
                .decide("it ends", true, nobody)
                .is_ok()
        );
        let refused = Confirm::default().decide("it ends", false, nobody);
        let refused = refused.unwrap_err();
        assert_eq!(refused.exit_code(), 64);
        let said = refused.to_string();
        assert!(said.contains("it ends") && said.contains("--yes"), "{said}");
    }
}
