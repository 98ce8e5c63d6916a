//! `tars completions` and `tars man`: what shells and `man` want to know of the command line.

use super::{Cli, CommandError, exit};
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars completions bash > ~/.local/share/bash-completion/completions/tars\n  tars completions zsh > \"${fpath[1]}/_tars\"\n  tars completions fish > ~/.config/fish/completions/tars.fish"
)]
pub(crate) struct Completions {
    /// The shell that will read the script.
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(&self) -> Result<ExitCode, CommandError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "tars", &mut script);
        print(&script)
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars man | man -l -\n  tars man --out /usr/local/share/man/man1"
)]
pub(crate) struct ManPages {
    /// Write a page for every command into this directory, which must exist; without it, the page of
    /// `tars` itself goes to standard output.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl ManPages {
    pub(crate) fn run(&self) -> Result<ExitCode, CommandError> {
        let Some(dir) = &self.out else {
            let made = page(Cli::command());
            let (_, text) = made.map_err(|e| CommandError::file(Path::new("-"), e))?;
            return print(&text);
        };
        write_pages(dir).map_err(|e| CommandError::file(dir, e))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A page's file name and text. It names the program and its version, whichever of its commands it is
/// about, and ends with the exit codes, which are the same for all.
fn page(command: Command) -> io::Result<(String, Vec<u8>)> {
    let command = command.after_long_help(None::<&str>);
    let man = Man::new(command).source(concat!("tars ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    man.render(&mut text)?;
    writeln!(text, ".SH \"EXIT STATUS\"")?;
    for (code, meaning) in exit::STATUS {
        writeln!(text, ".TP\n\\fB{code}\\fR\n{}", meaning.replace('-', "\\-"))?;
    }
    Ok((man.get_filename(), text))
}

fn write_pages(dir: &Path) -> io::Result<()> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    write_page(command, dir)
}

fn write_page(command: Command, dir: &Path) -> io::Result<()> {
    for inner in command.get_subcommands().filter(|s| !s.is_hide_set()) {
        write_page(inner.clone(), dir)?;
    }
    let (name, text) = page(command)?;
    std::fs::write(dir.join(name), text)
}

fn print(bytes: &[u8]) -> Result<ExitCode, CommandError> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // A pager that was left early has seen enough.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(CommandError::file(Path::new("-"), e))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Parser, ValueEnum};

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_about_help_is_no_mistake() {
        for line in [
            "tars help --help",
            "tars help -h",
            "tars proposals help --help",
            "tars help proposals list --help",
        ] {
            let words = line.split(' ').map(Into::into).collect();
            let shown = super::super::parse_words(words).unwrap_err();
            assert_eq!(shown.kind(), clap::error::ErrorKind::DisplayHelp, "{line}");
        }
        let words = ["tars", "nosuch", "--help"].map(Into::into).into();
        let refused = super::super::parse_words(words).unwrap_err();
        assert_eq!(refused.kind(), clap::error::ErrorKind::InvalidSubcommand);
    }

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "tars", &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in ["completions", "join-token", "data-dir"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn every_command_gets_a_page() {
        let dir = tempfile::tempdir().unwrap();
        write_pages(dir.path()).unwrap();
        for page in ["tars.1", "tars-certs.1", "tars-certs-issue.1"] {
            let text = std::fs::read_to_string(dir.path().join(page)).unwrap();
            assert!(text.contains("NAME"), "{page}");
            assert_eq!(text.matches("EXIT STATUS").count(), 1, "{page}");
            assert!(!text.contains("Exit status"), "{page}");
            for (code, _) in exit::STATUS {
                assert!(text.contains(&format!("\\fB{code}\\fR")), "{page}: {code}");
            }
            let title = text.lines().find(|l| l.starts_with(".TH")).unwrap();
            let version = concat!("tars ", env!("CARGO_PKG_VERSION"));
            assert!(title.contains(version), "{title}");
        }
    }

    /// Walks the commands, and notes what a reader of their help would miss.
    fn undocumented(command: &Command, path: &str, found: &mut Vec<String>) {
        let path = format!("{path} {}", command.get_name());
        if command.get_about().is_none() {
            found.push(format!("{path}: no description"));
        }
        let after = command.get_after_help().map(ToString::to_string);
        if !after.is_some_and(|text| text.starts_with("Example")) {
            found.push(format!("{path}: no example"));
        }
        for arg in command.get_arguments().filter(|a| !a.is_hide_set()) {
            if arg.get_help().is_none() {
                found.push(format!("{path}: {} has no help", arg.get_id()));
            }
        }
        for inner in command.get_subcommands() {
            undocumented(inner, &path, found);
        }
    }

    #[test]
    fn every_command_has_an_example_and_every_flag_a_line_of_help() {
        let mut found = Vec::new();
        undocumented(&Cli::command(), "", &mut found);
        assert!(found.is_empty(), "{found:#?}");
    }

    /// Where each positional argument stands in the usage of a command, in the order in which they are typed.
    fn disordered(command: &mut Command, path: &str, found: &mut Vec<String>) {
        let path = format!("{path} {}", command.get_name());
        let usage = command.render_usage().to_string();
        let names = command.get_positionals().filter_map(|arg| {
            let name = arg.get_value_names()?.first()?.to_string();
            usage.find(&name)
        });
        if !names.collect::<Vec<_>>().is_sorted() {
            found.push(format!("{path}: {usage}"));
        }
        for inner in command.get_subcommands_mut() {
            disordered(inner, &path, found);
        }
    }

    #[test]
    fn every_usage_has_the_arguments_in_the_order_in_which_they_are_typed() {
        let mut found = Vec::new();
        disordered(&mut Cli::command(), "", &mut found);
        assert!(found.is_empty(), "{found:#?}");
    }

    /// The command lines of the examples: what follows `tars`, up to a pipe or a redirection.
    fn examples(command: &Command, found: &mut Vec<String>) {
        let after = command.get_after_help().map(ToString::to_string);
        let lines = after.iter().flat_map(|text| text.lines());
        let lines = lines.filter_map(|line| line.strip_prefix("  tars "));
        found.extend(lines.map(str::to_owned));
        for inner in command.get_subcommands() {
            examples(inner, found);
        }
    }

    /// Splits as a shell does, as far as examples need it.
    fn words(line: &str) -> Vec<String> {
        let line = line.split(['|', '>', '<']).next().unwrap_or_default();
        // A table's second column explains.
        let line = line.split("  ").next().unwrap_or_default();
        let mut words = vec!["tars".to_owned()];
        for (n, part) in line.split('\'').enumerate() {
            match n % 2 {
                0 => words.extend(part.split_whitespace().map(str::to_owned)),
                _ => words.push(part.to_owned()),
            }
        }
        words
    }

    #[test]
    fn every_example_is_a_command_line_that_parses() {
        let mut lines = Vec::new();
        examples(&Cli::command(), &mut lines);
        assert!(lines.len() > 50, "{}", lines.len());
        for line in lines {
            let placeholder = "019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d";
            let line = line
                .replace("STUDY_ID", placeholder)
                .replace("PROPOSAL_ID", placeholder);
            let parsed = Cli::try_parse_from(words(&line));
            assert!(parsed.is_ok(), "tars {line}: {}", parsed.unwrap_err());
        }
    }
}
