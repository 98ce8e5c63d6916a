//! `tars completions` and `tars man`: what shells and `man` want to know of the command line.

use super::{Cli, CommandError};
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
            let mut page = Vec::new();
            let made = man(Cli::command()).render(&mut page);
            made.map_err(|e| CommandError::file(Path::new("-"), e))?;
            return print(&page);
        };
        write_pages(dir).map_err(|e| CommandError::file(dir, e))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A page that names the program and its version, whichever of its commands it is about.
fn man(command: Command) -> Man {
    Man::new(command).source(concat!("tars ", env!("CARGO_PKG_VERSION")))
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
    man(command).generate_to(dir).map(drop)
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
    use clap::ValueEnum;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
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
            let title = text.lines().find(|l| l.starts_with(".TH")).unwrap();
            let version = concat!("tars ", env!("CARGO_PKG_VERSION"));
            assert!(title.contains(version), "{title}");
        }
    }

    /// Walks the commands; what people would look for and not find.
    fn undocumented(command: &Command, path: &str, found: &mut Vec<String>) {
        let path = format!("{path} {}", command.get_name());
        if command.get_about().is_none() {
            found.push(format!("{path}: says nothing of itself"));
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
    fn every_command_and_every_flag_has_a_line_of_help() {
        let mut found = Vec::new();
        undocumented(&Cli::command(), "", &mut found);
        assert!(found.is_empty(), "{found:#?}");
    }
}
