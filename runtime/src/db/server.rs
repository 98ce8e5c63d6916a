//! A PostgreSQL server as the configuration names it.

use super::DbError;
use crate::config::{Address, Database, Host};
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};
use std::{fmt, path::Path, time::Duration};

/// How long a connection is waited for, of those that are open or to come.
const ACQUIRE: Duration = Duration::from_secs(5);
/// A connection is closed when it is this old, so that none outlives a change of the server's
/// addresses or of the password.
const LIFE: Duration = Duration::from_secs(30 * 60);

/// What each session is started with. A lock that is not granted, and a statement that does not end,
/// give their connection back before the client gives up; a transaction whose process stopped in it
/// (a frozen machine) does not hold its locks for longer than this.
const SESSION: [(&str, &str); 4] = [
    ("lock_timeout", "5s"),
    ("statement_timeout", "9s"),
    ("idle_in_transaction_session_timeout", "30s"),
    ("default_transaction_isolation", "read committed"),
];

/// A server, with what is needed to log in.
#[derive(Clone)]
pub struct Server {
    options: Box<PgConnectOptions>,
    prefix: String,
    readers: u32,
    writers: u32,
    migrate: bool,
}

impl fmt::Debug for Server {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({self})")
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.options;
        let database = options.get_database().unwrap_or_default();
        match options.get_socket() {
            Some(socket) => write!(f, "{database} at {}", socket.display()),
            None => write!(
                f,
                "{database} at {}:{}",
                options.get_host(),
                options.get_port()
            ),
        }
    }
}

impl Server {
    /// The server of a configuration, if it names one. Reads the password's file.
    ///
    /// # Errors
    ///
    /// [`DbError::Failed`] where the URL is refused, or the file cannot be read.
    pub fn of(settings: &Database) -> Result<Option<Self>, DbError> {
        let mistakes = settings.mistakes();
        if !mistakes.is_empty() {
            return Err(DbError::Failed(mistakes.join("; ")));
        }
        let Some(address) = settings.address().map_err(DbError::Failed)? else {
            return Ok(None);
        };
        let mut options = connect_options(&address, settings);
        if let Some(file) = &settings.password_file {
            options = options.password(password(file)?.trim_end_matches(['\r', '\n']));
        }
        Ok(Some(Self {
            options: Box::new(options),
            prefix: settings.schema_prefix.clone(),
            readers: settings.readers,
            writers: settings.writers,
            migrate: settings.migrate,
        }))
    }

    /// The schema of a service.
    pub(super) fn schema(&self, service: &str) -> String {
        format!("{}_{service}", self.prefix)
    }

    /// Whether an older schema is brought up to date.
    pub(super) fn migrates(&self) -> bool {
        self.migrate
    }

    /// For one connection that may wait, and whose statements may take long.
    pub(super) fn unbounded(&self, schema: &str) -> PgConnectOptions {
        PgConnectOptions::clone(&self.options).options([("search_path", schema)])
    }

    pub(super) fn reader(&self, schema: &str) -> PgPool {
        self.pool(schema, self.readers)
    }

    pub(super) fn writer(&self, schema: &str) -> PgPool {
        self.pool(schema, self.writers)
    }

    /// Connects when a connection is needed. One that was lost meanwhile is noticed by the statement
    /// that meets it, which the port repeats; asking before each would cost a round trip.
    fn pool(&self, schema: &str, connections: u32) -> PgPool {
        let options = self.unbounded(schema).options(SESSION);
        PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(ACQUIRE)
            .max_lifetime(LIFE)
            .test_before_acquire(false)
            .connect_lazy_with(options)
    }
}

/// Everything that the environment could set otherwise is set here.
fn connect_options(address: &Address, settings: &Database) -> PgConnectOptions {
    let mut options = PgConnectOptions::new_without_pgpass()
        .username(&address.user)
        .port(address.port)
        .database(&address.database)
        .application_name("tars");
    options = match &address.host {
        Host::Socket(directory) => options
            .host("localhost")
            .socket(directory)
            .ssl_mode(PgSslMode::Disable),
        Host::Verified(host) => options.host(host).ssl_mode(PgSslMode::VerifyFull),
        Host::Loopback(address) => options
            .host(&address.to_string())
            .ssl_mode(PgSslMode::Disable),
    };
    if let Some(root) = &settings.root_certificate {
        options = options.ssl_root_cert(root);
    }
    if let (Some(certificate), Some(key)) = (&settings.client_certificate, &settings.client_key) {
        options = options.ssl_client_cert(certificate).ssl_client_key(key);
    }
    options
}

fn password(file: &Path) -> Result<String, DbError> {
    let unreadable = |e| DbError::Failed(format!("database.password_file {}: {e}", file.display()));
    std::fs::read_to_string(file).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_read_from_its_file_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "hunter2\n").unwrap();
        let settings = Database {
            url: Some("postgresql://tars@localhost/mesh?host=/run/pg".to_owned()),
            password_file: Some(file),
            ..Database::default()
        };
        let server = Server::of(&settings).unwrap().unwrap();
        let (debug, shown) = (format!("{server:?}"), server.to_string());
        assert!(!debug.contains("hunter2") && !shown.contains("hunter2"));
        assert_eq!(shown, "mesh at /run/pg");
        let driver = format!("{:?}", server.options);
        assert!(driver.contains("\"hunter2\""), "without its line end");
    }

    #[test]
    fn a_password_file_that_is_not_there_is_named() {
        let settings = Database {
            url: Some("postgresql://tars@localhost/mesh?host=/run/pg".to_owned()),
            password_file: Some("/nonexistent/password".into()),
            ..Database::default()
        };
        let refused = Server::of(&settings).unwrap_err().to_string();
        assert!(refused.contains("/nonexistent/password"), "{refused}");
    }
}
