//! `tars users`.

use super::{CommandError, Global, block_on, confirm::Confirm, mesh::MeshArg, output, password};
use crate::rest::{Rest, RestError, escape};
use clap::{Args, Subcommand, builder::PossibleValuesParser};
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
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Create a user; the password (12 characters or more) comes from a file or standard input.
    Create {
        /// The name to log in by.
        username: String,
        /// A role of the new user; may be given several times.
        #[arg(long = "role", required = true, value_name = "ROLE", value_parser = role())]
        roles: Vec<String>,
        /// A file with the password; standard input when left out.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// End a user's sessions and keys, and let nobody in by that name.
    Disable {
        /// Whom to keep out.
        username: String,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Let a disabled user in again.
    Enable {
        /// Whom to let in.
        username: String,
    },
    /// Replace a user's roles, which ends their sessions.
    Roles {
        /// Whose roles to replace.
        username: String,
        /// All roles that the user has from now on.
        #[arg(required = true, value_parser = role())]
        roles: Vec<String>,
        #[command(flatten)]
        confirm: Confirm,
    },
}

impl Users {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let mesh = global.mesh(&self.mesh)?;
        block_on(async {
            let rest = mesh.session().await?.rest();
            match self.command {
                Command::List { json } => {
                    let users = list(&rest).await?;
                    print(&users, json);
                }
                Command::Create {
                    username,
                    roles,
                    password_file,
                } => {
                    let password = password::choose(password_file)?;
                    let body = json!({ "username": username, "password": password.as_str(), "roles": roles });
                    print(
                        &[rest.post("/admin/users", body).await?["user"].clone()],
                        false,
                    );
                }
                Command::Disable { username, confirm } => {
                    exists(&rest, &username).await?;
                    confirm.ask(&format!(
                        "every session of {username} ends, and their API keys stop working"
                    ))?;
                    let path = format!("/admin/users/{}/disable", escape(&username));
                    print(&[rest.post(&path, json!({})).await?["user"].clone()], false);
                }
                Command::Enable { username } => {
                    let path = format!("/admin/users/{}/enable", escape(&username));
                    print(&[rest.post(&path, json!({})).await?["user"].clone()], false);
                }
                Command::Roles {
                    username,
                    roles,
                    confirm,
                } => {
                    exists(&rest, &username).await?;
                    confirm.ask(&format!(
                        "{username} holds {} and nothing else from now on, and every session of theirs ends",
                        roles.join(", ")
                    ))?;
                    let path = format!("/admin/users/{}/roles", escape(&username));
                    print(
                        &[rest.put(&path, json!({ "roles": roles })).await?["user"].clone()],
                        false,
                    );
                }
            }
            Ok(ExitCode::SUCCESS)
        })?
    }
}

/// The roles that there are, before a password is asked for.
fn role() -> PossibleValuesParser {
    PossibleValuesParser::new(
        permission::default_roles()
            .into_iter()
            .map(|(name, _)| name),
    )
}

/// Nobody is asked about a user that there is not.
async fn exists(rest: &Rest, username: &str) -> Result<(), CommandError> {
    let users = match list(rest).await {
        // The mesh itself will say it.
        Err(CommandError::Rest(RestError::Refused { status, .. })) if status.as_u16() == 403 => {
            return Ok(());
        }
        other => other?,
    };
    if users.iter().any(|u| u["username"] == username) {
        return Ok(());
    }
    Err(CommandError::Failed(format!(
        "there is no user {username:?}; `tars users list` shows all"
    )))
}

async fn list(rest: &Rest) -> Result<Vec<Value>, CommandError> {
    let (mut users, mut token) = (Vec::new(), String::new());
    loop {
        let page = rest
            .get(&format!("/admin/users?page_token={token}"))
            .await?;
        users.extend(page["users"].as_array().cloned().unwrap_or_default());
        token = page["next_page_token"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if token.is_empty() {
            return Ok(users);
        }
    }
}

fn print(users: &[Value], json: bool) {
    if json {
        say!("{}", Value::from(users));
        return;
    }
    let rows: Vec<Vec<String>> = users
        .iter()
        .map(|u| {
            let text = |name: &str| u[name].as_str().unwrap_or_default().to_owned();
            let roles = u["roles"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect::<Vec<_>>();
            let state = if u["disabled"] == true {
                "disabled"
            } else {
                "active"
            };
            vec![
                text("username"),
                roles.join(","),
                state.to_owned(),
                text("created_at"),
            ]
        })
        .collect();
    output::table(&["user", "roles", "state", "created"], &rows);
}
