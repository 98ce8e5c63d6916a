//! `tars login` and `tars token`.

use super::{CommandError, Global, block_on, session::Session};
use clap::Args;
use std::{
    io::{self, BufRead, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars login --username admin --password-file ~/.local/share/tars/admin-password\n  pass tars/ada | tars login --username ada\n\nThe password is read from the file, or from standard input; never from an argument."
)]
pub(crate) struct Login {
    #[arg(long)]
    username: String,
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The gateway's URL; that of the mesh in the data directory when left out.
    #[arg(long, value_name = "URL")]
    gateway: Option<String>,
}

impl Login {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let gateway = match self.gateway {
            Some(url) => url,
            None => global.ready()?.gateway,
        };
        let password = read_password(self.password_file)?;
        let session = block_on(Session::login(
            &gateway,
            &self.username,
            password.trim_end_matches('\n'),
        ))??;
        eprintln!("logged in to {} as {}", session.gateway, session.username);
        Ok(ExitCode::SUCCESS)
    }
}

pub(crate) fn read_password(file: Option<PathBuf>) -> Result<String, CommandError> {
    if let Some(path) = file {
        return std::fs::read_to_string(&path).map_err(|e| CommandError::file(&path, e));
    }
    if io::stdin().is_terminal() {
        eprint!("password (will be shown): ");
    }
    let mut line = String::new();
    io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|e| CommandError::Failed(e.to_string()))?;
    Ok(line)
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  curl -H \"Authorization: Bearer $(tars token)\" http://127.0.0.1:3001/auth/me"
)]
pub(crate) struct Token {}

impl Token {
    pub(crate) fn run(self, _: &Global) -> Result<ExitCode, CommandError> {
        let session = block_on(Session::open())??;
        println!("{}", session.token());
        Ok(ExitCode::SUCCESS)
    }
}
