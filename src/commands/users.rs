//! `tars users`: accounts, and what they may do.

use super::{
    CommandError, Global,
    confirm::Confirm,
    listing::{self, text},
    mesh::MeshArg,
    password,
};
use crate::rest::{Rest, RestError, escape};
use clap::{Args, Subcommand, builder::PossibleValuesParser};
use http::StatusCode;
use serde_json::{Value, json};
use std::{path::PathBuf, process::ExitCode};
use tars_credentials::permission;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars users list\n  tars users create ada --role developer < password.txt\n  tars users disable ada\n  tars users roles ada viewer --yes"
)]
pub(crate) struct Users {
    #[command(flatten)]
    mesh: MeshArg,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List all users.
    #[command(after_help = "Examples:\n  tars users list\n  tars users list --json")]
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Create a user; the password (12 characters or more) comes from a file or standard input.
    #[command(
        after_help = "Examples:\n  tars users create ada --role developer --password-file ada.password\n  pass tars/ada | tars users create ada --role viewer --role developer"
    )]
    Create {
        /// The name to log in by.
        username: String,
        /// A role of the new user; may be given several times.
        #[arg(long = "role", required = true, value_name = "ROLE", value_parser = role())]
        roles: Vec<String>,
        /// A file with the password; standard input when left out.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Print the user as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Disable a user: their sessions end, their keys stop working, and logins are refused.
    #[command(after_help = "Examples:\n  tars users disable ada\n  tars users disable ada --yes")]
    Disable {
        /// The user to disable.
        username: String,
        #[command(flatten)]
        confirm: Confirm,
        /// Print the user as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Let a disabled user log in again.
    #[command(after_help = "Example:\n  tars users enable ada")]
    Enable {
        /// The user to enable.
        username: String,
        /// Print the user as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Replace a user's roles, which ends their sessions.
    #[command(after_help = "Example:\n  tars users roles ada viewer developer --yes")]
    Roles {
        /// The user whose roles to replace.
        username: String,
        /// All roles that the user will have.
        #[arg(required = true, value_parser = role())]
        roles: Vec<String>,
        #[command(flatten)]
        confirm: Confirm,
        /// Print the user as JSON.
        #[arg(long)]
        json: bool,
    },
}

impl Users {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let json = self.command.is_in_json();
        global.in_session(&self.mesh, json, async |session| {
            self.command.run(&session.rest()).await
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Command {
    fn is_in_json(&self) -> bool {
        match self {
            Self::List { json }
            | Self::Create { json, .. }
            | Self::Disable { json, .. }
            | Self::Enable { json, .. }
            | Self::Roles { json, .. } => *json,
        }
    }

    async fn run(self, rest: &Rest) -> Result<(), CommandError> {
        match self {
            Self::List { json: true } => say!("{}", Value::from(list(rest).await?)),
            Self::List { json: false } => print(&list(rest).await?),
            Self::Create {
                username,
                roles,
                password_file,
                json,
            } => {
                let password = password::choose(password_file)?;
                print_one(json, create(rest, &username, &roles, &password).await?);
            }
            Self::Disable {
                username,
                confirm,
                json,
            } => {
                exists(rest, &username).await?;
                confirm.ask(&format!(
                    "every session of {username} ends, and their API keys stop working"
                ))?;
                print_one(
                    json,
                    rest.post(&path(&username, "disable"), json!({})).await?,
                );
            }
            Self::Enable { username, json } => {
                print_one(
                    json,
                    rest.post(&path(&username, "enable"), json!({})).await?,
                );
            }
            Self::Roles {
                username,
                roles,
                confirm,
                json,
            } => {
                exists(rest, &username).await?;
                confirm.ask(&format!(
                    "{username} will have the roles {} and no others, and every session of theirs ends",
                    roles.join(", ")
                ))?;
                let body = json!({ "roles": roles });
                print_one(json, rest.put(&path(&username, "roles"), body).await?);
            }
        }
        Ok(())
    }
}

async fn create(
    rest: &Rest,
    username: &str,
    roles: &[String],
    password: &str,
) -> Result<Value, CommandError> {
    let body = json!({ "username": username, "password": password, "roles": roles });
    Ok(rest.post("/admin/users", body).await?)
}

fn path(username: &str, action: &str) -> String {
    format!("/admin/users/{}/{action}", escape(username))
}

/// Unknown roles are refused before a password is asked for.
fn role() -> PossibleValuesParser {
    PossibleValuesParser::new(permission::role_names())
}

/// Refuses a user that does not exist before the question about them is asked.
async fn exists(rest: &Rest, username: &str) -> Result<(), CommandError> {
    let users = match list(rest).await {
        // The call itself will be refused, with the reason.
        Err(e) if e.status() == Some(StatusCode::FORBIDDEN) => return Ok(()),
        other => other?,
    };
    if users.iter().any(|u| u["username"] == username) {
        return Ok(());
    }
    Err(CommandError::Failed(format!(
        "there is no user {username:?}; `tars users list` shows all"
    )))
}

async fn list(rest: &Rest) -> Result<Vec<Value>, RestError> {
    listing::all(rest, "/admin/users", "users").await
}

fn print_one(json: bool, mut answer: Value) {
    let user = answer["user"].take();
    if json {
        say!("{user:#}");
    } else {
        print(&[user]);
    }
}

fn print(users: &[Value]) {
    listing::table(&["user", "roles", "state", "created"], users, |u| {
        let roles = u["roles"].as_array().into_iter().flatten();
        let roles: Vec<&str> = roles.filter_map(Value::as_str).collect();
        let disabled = u["disabled"] == true;
        vec![
            text(&u["username"]),
            roles.join(","),
            if disabled { "disabled" } else { "active" }.to_owned(),
            text(&u["created_at"]),
        ]
    });
}
