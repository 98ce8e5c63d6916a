//! `tars login`, `tars logout` and `tars token`.

use super::{CommandError, Global, block_on, mesh::MeshArg, password, session::Session, starting};
use clap::Args;
use std::{path::PathBuf, process::ExitCode};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars login --username admin --password-file ~/.local/share/tars/admin-password\n  tars login --gateway http://127.0.0.1:3001 --username ada --password-file ada.password\n  pass tars/ada | tars login --username ada\n\nThe password is read from the file, which must be readable by its owner alone, or from standard\ninput, without echo; never from an argument. Each mesh has a session of its own; logging in to one\nleaves the others as they are."
)]
pub(crate) struct Login {
    /// Who logs in.
    #[arg(long)]
    username: String,
    /// A file with the password, readable by its owner alone; standard input when left out.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    #[command(flatten)]
    mesh: MeshArg,
}

impl Login {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let mesh = global.mesh(&self.mesh)?;
        let password = password::read(self.password_file)?;
        let session = block_on(async {
            let logged_in = async {
                let known = mesh.to_log_in().await?;
                Session::login(known, &self.username, &password).await
            };
            match logged_in.await {
                Err(error) => Err(starting::explained(error, mesh.gateway().as_deref()).await),
                logged_in => logged_in,
            }
        })??;
        note!("logged in to {session}");
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars logout\n  tars logout --gateway http://127.0.0.1:3001\n\nEnds the session, with every token that was refreshed from it, and removes its file,\nwhatever the mesh answers."
)]
pub(crate) struct Logout {
    #[command(flatten)]
    mesh: MeshArg,
}

impl Logout {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let mesh = global.mesh(&self.mesh)?;
        block_on(async {
            let session = mesh.session_to_end().await?;
            let name = session.to_string();
            match session.end().await? {
                Ok(()) => note!("logged out of {name}"),
                Err(why) => note!(
                    "forgot the session of {name}; the mesh did not end it, so it lasts there until it expires: {why}"
                ),
            }
            Ok(ExitCode::SUCCESS)
        })?
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  curl -H \"Authorization: Bearer $(tars token)\" http://127.0.0.1:3001/auth/me"
)]
pub(crate) struct Token {
    #[command(flatten)]
    mesh: MeshArg,
}

impl Token {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let mesh = global.mesh(&self.mesh)?;
        let session = block_on(mesh.session())??;
        say!("{}", session.token());
        Ok(ExitCode::SUCCESS)
    }
}
