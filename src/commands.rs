//! The command line: parsing, configuration, and the exit code. One file a subcommand.

// All of it prints through `output`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
mod output;

mod advice;
mod agents;
mod audit;
mod causes;
mod certs;
mod completions;
mod config;
mod confirm;
mod db;
mod demo;
mod descriptors;
mod events;
mod exit;
mod known;
mod listing;
mod login;
mod mesh;
mod password;
mod plain;
mod policy;
mod presets;
mod probe;
mod progress;
mod proposals;
mod serve;
mod session;
mod sessions;
mod starting;
mod studies;
mod train;
mod training;
mod up;
mod usage;
mod users;

use crate::{
    app::{
        Ready, Service, StartError,
        connect_failure::{Attempt, Explained},
    },
    rest::RestError,
};
use clap::{
    Args, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};
use mesh::{Mesh, MeshArg, Named};
use session::Session;
use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};
use tars_certs::IdentityError;
use tars_runtime::{
    config::{Config, ConfigErrors, Connect, Data, Listen, leaf},
    log,
};
use toml::{Table, Value};

/// A gRPC service mesh, mTLS first, that carries a governed multi-agent learning platform.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = EXAMPLES,
    after_long_help = long_help()
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// A TOML file; TARS__SECTION__KEY variables and flags override it.
    #[arg(long, global = true, env = "TARS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The directory for databases, keys and certificates [default: $XDG_DATA_HOME/tars or
    /// ~/.local/share/tars; for `tars demo` a temporary one].
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The log filter, such as `info` or `info,tars_mesh=debug`.
    #[arg(long, global = true, value_name = "FILTER")]
    log_level: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve all services in one process, over mTLS between them.
    Up(up::Up),
    /// Serve one service in this process.
    Serve(serve::Serve),
    /// Start a fresh mesh and run the main job: train, search, propose, approve, apply, verify.
    Demo(demo::Demo),
    /// Issue, inspect, renew and revoke certificates; rotate the roots.
    Certs(certs::Certs),
    /// Log in to a running mesh and store the session.
    Login(login::Login),
    /// End the session with a mesh and remove it.
    Logout(login::Logout),
    /// Print the session's access token, refreshed when it is due.
    Token(login::Token),
    /// List, create, disable and enable users; change their roles.
    Users(users::Users),
    /// List and show the agents; change their live hyperparameters.
    Agents(agents::Agents),
    /// Start, list and follow searches for hyperparameters; stop them.
    Studies(studies::Studies),
    /// Let the agents step a world, and measure how far they are from an equilibrium.
    Sessions(sessions::Sessions),
    /// Train an algorithm in a built-in environment, without a mesh; follow the training runs of a mesh.
    Train(train::Train),
    /// Train the agents of a running mesh together; list, pause, resume and cancel such runs.
    Training(training::Training),
    /// Propose, decide about and apply changes of live hyperparameters.
    Proposals(proposals::Proposals),
    /// Read the audit list.
    Audit(audit::Audit),
    /// Show what users have used, and export it for billing.
    Usage(usage::UsageCommand),
    /// Check a peer policy, and explain what it decides.
    Policy(policy::PolicyCommand),
    /// Look at and migrate the databases; back up and restore all that a mesh keeps.
    Db(db::Database),
    /// Print the effective configuration.
    Config(config::ConfigCommand),
    /// Write the contract's descriptors, for clients that do not reflect.
    Descriptors(descriptors::Descriptors),
    /// Check a service's health over mTLS.
    Probe(probe::Probe),
    /// Print a script that completes commands in a shell.
    Completions(completions::Completions),
    /// Print or write man pages.
    Man(completions::ManPages),
}

/// Why a command ended with an error; the message is what it prints.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error(transparent)]
    Log(#[from] log::LevelError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{}", plain::refusal(.0))]
    Rest(RestError),
    /// A refusal for which there is something to do.
    #[error("{}; {advice}", advice::problem(.error))]
    Advised {
        error: Box<RestError>,
        advice: String,
    },
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Connection(Explained),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
    /// There is no session for the mesh, or it has ended.
    #[error("{0}")]
    NotLoggedIn(String),
    /// The mesh went away while a stream was followed, and stayed away.
    #[error("the mesh was lost and did not come back ({why}); {goes_on} goes on")]
    Away { why: String, goes_on: String },
    /// An error of a command that was asked for JSON.
    #[error("{}", in_json(.0))]
    Json(Box<Self>),
    #[error("interrupted; nothing was changed")]
    Interrupted,
    /// What a command follows goes on without it.
    #[error("interrupted; nothing was stopped, and {goes_on} goes on")]
    Unfollowed { goes_on: String },
    #[error("the runtime could not start: {0}")]
    Runtime(io::Error),
    #[error("certificates: {0}")]
    Ca(#[from] tars_certs::CaError),
}

impl From<RestError> for CommandError {
    fn from(error: RestError) -> Self {
        advice::of_any_call(error)
    }
}

impl CommandError {
    fn file(path: &Path, source: io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source,
        }
    }

    /// A failed call of a service, with what to do about it where that is known.
    fn on(attempt: &Attempt, error: impl std::fmt::Display) -> Self {
        let text = error.to_string();
        match attempt.explain(&text) {
            Some(explained) => Self::Connection(explained),
            None => Self::Failed(text),
        }
    }

    fn is_vague(&self) -> bool {
        matches!(self, Self::Connection(e) if e.failure.is_vague())
    }

    /// An identity on this machine that cannot be used, found before any connection was made.
    fn own(attempt: &Attempt, error: &IdentityError) -> Self {
        match attempt.explain_own(error) {
            Some(explained) => Self::Connection(explained),
            None => Self::Failed(error.to_string()),
        }
    }

    /// The error as JSON, where the command was asked for that.
    fn in_json_if(self, json: bool) -> Self {
        match json {
            true => Self::Json(Box::new(self)),
            false => self,
        }
    }
}

/// One line: the `google.rpc.Status` of a refusal with its reason beside the message, and what to do
/// about it where that is known; of other errors the message, with a reason where nobody is logged in.
fn in_json(error: &CommandError) -> serde_json::Value {
    let (refusal, advice) = match error {
        CommandError::Rest(refusal) => (Some(refusal), None),
        CommandError::Advised { error, advice } => (Some(&**error), Some(advice)),
        _ => (None, None),
    };
    let mut value = match refusal.and_then(RestError::body) {
        Some(body) if body.is_object() => body.clone(),
        _ => serde_json::json!({ "message": error.to_string() }),
    };
    let reason = match error {
        CommandError::NotLoggedIn(_) => Some(NOT_LOGGED_IN),
        _ => refusal.and_then(RestError::reason),
    };
    if let Some(reason) = reason {
        value["reason"] = reason.into();
    }
    if let Some(advice) = advice {
        value["advice"] = advice.as_str().into();
    }
    value
}

/// The reason of a command that needs a session and has none. No service sends it.
const NOT_LOGGED_IN: &str = "NOT_LOGGED_IN";

const EXAMPLES: &str = "Examples:\n  tars demo                 start a fresh mesh and run the main job\n  \
    tars up                   serve everything in one process\n  \
    tars login --username admin --password-file ~/.local/share/tars/admin-password\n  \
    tars audit list --json    what happened, for scripts";

fn long_help() -> String {
    let line = |(code, meaning): (&str, &str)| format!("\n  {code:<4} {meaning}");
    let codes: String = exit::STATUS.into_iter().map(line).collect();
    format!("{EXAMPLES}\n\nExit status:{codes}")
}

/// Parses the command line; prints help or a mistake, and exits, where it names no command to run.
pub fn parse() -> Cli {
    let words: Vec<OsString> = std::env::args_os().collect();
    parse_words(words).unwrap_or_else(|e| e.exit())
}

/// clap takes what follows `help` for the name of a command, so that `tars help --help` would be a
/// mistake.
fn parse_words(mut words: Vec<OsString>) -> Result<Cli, clap::Error> {
    let refused = match Cli::try_parse_from(&words) {
        Err(e) if e.kind() == ErrorKind::InvalidSubcommand => e,
        other => return other,
    };
    match refused.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(flag)) if flag == "--help" || flag == "-h" => {
            words.retain(|word| word != flag.as_str());
            Cli::try_parse_from(&words)
        }
        _ => Err(refused),
    }
}

/// Runs a command; an error is printed and becomes the exit code.
pub fn run(cli: Cli) -> ExitCode {
    match execute(cli) {
        Ok(code) => code,
        Err(e) => {
            match &e {
                CommandError::Json(_) => note!("{e}"),
                _ => note!("tars: {e}"),
            }
            ExitCode::from(e.exit_code())
        }
    }
}

fn execute(cli: Cli) -> Result<ExitCode, CommandError> {
    let Cli { global, command } = cli;
    match command {
        Command::Up(up) => up.run(&global),
        Command::Serve(serve) => serve.run(&global),
        Command::Demo(demo) => demo.run(&global),
        Command::Certs(certs) => certs.run(&global),
        Command::Login(login) => login.run(&global),
        Command::Logout(logout) => logout.run(&global),
        Command::Token(token) => token.run(&global),
        Command::Users(users) => users.run(&global),
        Command::Agents(agents) => agents.run(&global),
        Command::Sessions(sessions) => sessions.run(&global),
        Command::Studies(studies) => studies.run(&global),
        Command::Train(train) => train.run(&global),
        Command::Training(training) => training.run(&global),
        Command::Proposals(proposals) => proposals.run(&global),
        Command::Audit(audit) => audit.run(&global),
        Command::Usage(usage) => usage.run(&global),
        Command::Policy(policy) => policy.run(&global),
        Command::Db(database) => database.run(&global),
        Command::Config(config) => config.run(&global),
        Command::Descriptors(descriptors) => descriptors.run(),
        Command::Probe(probe) => probe.run(&global),
        Command::Completions(completions) => completions.run(),
        Command::Man(pages) => pages.run(),
    }
}

impl Global {
    /// The configuration, with these flags and the command's own on top.
    fn load(&self, mut flags: Table) -> Result<Config, CommandError> {
        let mut put = |section: &str, key: &str, value: String| {
            for (section, inner) in leaf(section, key, Value::String(value)) {
                match (flags.get_mut(&section), inner) {
                    (Some(Value::Table(old)), Value::Table(new)) => old.extend(new),
                    (_, inner) => drop(flags.insert(section, inner)),
                }
            }
        };
        if let Some(dir) = &self.data_dir {
            put("data", "dir", dir.display().to_string());
        }
        if let Some(level) = &self.log_level {
            put("log", "level", level.clone());
        }
        Ok(Config::load(
            self.config.as_deref(),
            std::env::vars(),
            flags,
        )?)
    }

    /// Does the work of a command in the session with its mesh. An error is JSON where that was asked for.
    fn in_session<T>(
        &self,
        arg: &MeshArg,
        json: bool,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let mesh = self.mesh(arg)?;
        let done = block_on(async {
            let mut gateway = mesh.gateway();
            let done = async {
                let mut session = mesh.session().await?;
                gateway = Some(session.url().to_owned());
                work(&mut session).await
            };
            match done.await {
                Err(error) => Err(starting::explained(error, gateway.as_deref()).await),
                done => done,
            }
        })?;
        done.map_err(|e| e.in_json_if(json))
    }

    /// The mesh that a command speaks to.
    fn mesh(&self, arg: &MeshArg) -> Result<Mesh, CommandError> {
        let config = self.load(Table::new())?;
        let default = Data::default().dir;
        let named = Named::new(
            arg.gateway.as_deref(),
            self.data_dir.as_deref(),
            &config.data.dir,
            &default,
        )?;
        let listens = self.is_given(
            "TARS__LISTEN__GATEWAY",
            config.listen.gateway != Listen::default().gateway,
        );
        let gateway = listens.then(|| mesh::url_of(config.listen.gateway));
        Ok(Mesh::new(named, default, gateway))
    }

    /// Whether a setting was given, rather than left at its default.
    fn is_given(&self, variable: &str, differs: bool) -> bool {
        self.config.is_some() || differs || std::env::var_os(variable).is_some()
    }

    /// Where a service of the mesh is, as `host:port`: what runs on the data directory says so;
    /// else the configuration may. `flag` is the one by which the command can be told.
    fn target(&self, service: Service, flag: &str) -> Result<String, CommandError> {
        let config = self.load(Table::new())?;
        let path = Ready::default_path(&config.data.dir);
        let ready = Ready::load(&path);
        let connect = |connect: &Connect| connect.of(service).map(str::to_owned);
        let variable = format!("TARS__CONNECT__{}", service.as_str().to_uppercase());
        let differs = connect(&config.connect) != connect(&Connect::default());
        let found = match ready {
            Ok(ready) => service.is_over_tls().then(|| ready.url(service).to_owned()),
            Err(e) if e.kind() == io::ErrorKind::NotFound && self.is_given(&variable, differs) => {
                connect(&config.connect)
            }
            Err(e) => {
                let service = service.as_str();
                return Err(CommandError::Failed(format!(
                    "the address of {service} is not known: give it by {flag} HOST:PORT, or by a --config with a [connect] section; or start the mesh with `tars up`, or name its --data-dir (cause: {}: {e})",
                    path.display()
                )));
            }
        };
        let url = found.ok_or_else(|| {
            CommandError::Usage("the gateway speaks HTTP; look at its /ready".to_owned())
        })?;
        Ok(url.trim_start_matches("https://").to_owned())
    }
}

fn init_log(config: &Config) -> Result<(), CommandError> {
    init_log_of(config, None)
}

/// Logs, each line with the number of this replica where it is one of several.
fn init_log_of(config: &Config, replica: Option<u32>) -> Result<(), CommandError> {
    Ok(log::init(config.log.format, &config.log.level, replica)?)
}

/// How often a connection is tried that ends without a reason.
const TRIES: usize = 5;

/// Retries an attempt that failed without a reason: the alert which names one can be lost.
async fn retry<T>(
    mut attempt: impl AsyncFnMut() -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    for _ in 1..TRIES {
        match attempt().await {
            Err(e) if e.is_vague() => {}
            other => return other,
        }
    }
    attempt().await
}

fn block_on<F: Future>(work: F) -> Result<F::Output, CommandError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(CommandError::Runtime)?;
    Ok(runtime.block_on(work))
}
