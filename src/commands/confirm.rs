//! The question before a command takes away what cannot be given back: asked of a person, and
//! answered by `--yes` where there is nobody to ask.

use super::{CommandError, output};
use clap::Args;
use std::io::{self, BufRead, IsTerminal};

#[derive(Debug, Args, Default)]
pub(crate) struct Confirm {
    /// Do not ask before what cannot be undone; needed where nobody can be asked.
    #[arg(long, short)]
    yes: bool,
}

impl Confirm {
    /// Returns when it is meant; `what` says what is about to happen.
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
            let text = format!("{what}; nobody can be asked here: say --yes if it is meant");
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
    fn only_a_yes_is_one() {
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
    fn where_nobody_can_be_asked_it_is_said_or_refused() {
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
