//! A PostgreSQL server as the configuration names it.

use super::{
    DbError,
    connection::RETURN_LIMIT,
    migrate::{Mode, Schema},
    session::{MEANING, verify},
};
use crate::{
    config::{Address, Database, Host},
    password,
    roots::{certificates, roots},
};
use sqlx::{
    Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};
use std::{fmt, path::PathBuf, time::Duration};
use tokio::time::timeout;

/// How long a connection is waited for, of those that are open or to come.
const ACQUIRE: Duration = Duration::from_secs(5);
/// A connection is closed when it is this old, so that none outlives a change of the server's
/// addresses or of the password.
const LIFE: Duration = Duration::from_secs(30 * 60);

/// A connection that was not used for longer may be lost without a sign.
const IDLE: Duration = Duration::from_secs(5);

/// A lock that is not granted, and a statement that does not end, give their connection back before the
/// client gives up. A transaction whose process stopped in it (a frozen machine) loses its locks before
/// those who wait for them give up.
const BOUNDS: [(&str, &str); 3] = [
    ("lock_timeout", "5s"),
    ("statement_timeout", "9s"),
    ("idle_in_transaction_session_timeout", "4s"),
];

/// Variables of PostgreSQL's clients that would change sessions behind the configuration's back, and
/// that the driver cannot be kept from reading.
const REFUSED: [&str; 3] = ["PGOPTIONS", "PGSSLCERT", "PGSSLKEY"];

/// A server, with what is needed to log in.
#[derive(Clone)]
pub struct Server {
    options: Box<PgConnectOptions>,
    password_file: Option<PathBuf>,
    prefix: String,
    owner: Option<String>,
    readers: u32,
    writers: u32,
    mode: Mode,
    lease_life: Duration,
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
            Some(socket) => write!(
                f,
                "{database} at {}/.s.PGSQL.{}",
                socket.display(),
                options.get_port()
            ),
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
    /// The server of a configuration, if it names one.
    ///
    /// # Errors
    ///
    /// [`DbError::Failed`] where the URL is refused, the password or the client's key cannot be read or
    /// can be read by others, or the environment would change sessions.
    pub fn of(settings: &Database) -> Result<Option<Self>, DbError> {
        let mistakes = settings.mistakes();
        if !mistakes.is_empty() {
            return Err(DbError::Failed(mistakes.join("; ")));
        }
        let Some(address) = settings.address().map_err(DbError::Failed)? else {
            return Ok(None);
        };
        refuse_variables(|name| std::env::var_os(name).is_some())?;
        if let Some(file) = &settings.root_certificate {
            roots("database.root_certificate", file).map_err(DbError::Failed)?;
        }
        if let Some(key) = &settings.client_key {
            password::check_secret("database.client_key", key).map_err(DbError::Failed)?;
        }
        if let Some(file) = &settings.client_certificate {
            certificates("database.client_certificate", file).map_err(DbError::Failed)?;
        }
        let server = Self {
            options: Box::new(connect_options(&address, settings)),
            password_file: settings.password_file.clone(),
            prefix: settings.schema_prefix.clone(),
            owner: settings.schema_owner.clone(),
            readers: settings.readers,
            writers: settings.writers,
            mode: match settings.migrate {
                true => Mode::Apply,
                false => Mode::Check,
            },
            lease_life: Duration::from_secs(settings.lease_seconds),
        };
        server.login()?;
        Ok(Some(server))
    }

    /// With the password as its file has it now.
    fn login(&self) -> Result<PgConnectOptions, DbError> {
        let options = PgConnectOptions::clone(&self.options);
        let Some(file) = &self.password_file else {
            return Ok(options);
        };
        let password = password::read("database.password_file", file).map_err(DbError::Failed)?;
        Ok(options.password(&password))
    }

    /// The schema of a service.
    pub(super) fn schema(&self, service: &str) -> String {
        format!("{}_{service}", self.prefix)
    }

    /// A schema, with the role that has to own it.
    pub(super) fn owned<'a>(&'a self, name: &'a str) -> Schema<'a> {
        Schema {
            name,
            owner: self.owner.as_deref(),
        }
    }

    /// What is done about an older schema.
    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// How long a lease lasts without renewal.
    pub(super) fn lease_life(&self) -> Duration {
        self.lease_life
    }

    /// For one connection that may wait, and whose statements may take long. Notices, such as that a
    /// table exists, would be logged at each start.
    pub(super) fn unbounded(&self, schema: &str) -> Result<PgConnectOptions, DbError> {
        let options = self.login()?;
        let options =
            options.options([("search_path", schema), ("client_min_messages", "warning")]);
        Ok(options.options(MEANING))
    }

    fn bounded(&self, schema: &str) -> Result<PgConnectOptions, DbError> {
        Ok(self.unbounded(schema)?.options(BOUNDS))
    }

    pub(super) fn reader(&self, schema: &str) -> Result<PgPool, DbError> {
        self.pool(schema, self.readers)
    }

    pub(super) fn writer(&self, schema: &str) -> Result<PgPool, DbError> {
        self.pool(schema, self.writers)
    }

    /// Connects when a connection is needed. One that was closed meanwhile is noticed by the statement
    /// that meets it, which the port repeats; asking before each would cost a round trip. One that was
    /// idle is asked, since a firewall may have forgotten it, and nothing would answer.
    fn pool(&self, schema: &str, connections: u32) -> Result<PgPool, DbError> {
        let options = self.bounded(schema)?;
        let expected = schema.to_owned();
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(ACQUIRE)
            .max_lifetime(LIFE)
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    match meta.idle_for < IDLE {
                        true => Ok(true),
                        false => is_answered(connection).await,
                    }
                })
            })
            .after_connect(move |connection, _| {
                let expected = expected.clone();
                Box::pin(async move { verify(connection, &expected).await })
            });
        Ok(pool.connect_lazy_with(options))
    }

    /// Makes new connections of a pool with the password as its file has it now, after one of them
    /// failed.
    pub(super) fn read_password_again(&self, pool: &PgPool, schema: &str) {
        if self.password_file.is_none() {
            return;
        }
        match self.bounded(schema) {
            Ok(options) => pool.set_connect_options(options),
            Err(error) => tracing::warn!(%error, "the password could not be read again"),
        }
    }
}

/// Whether a server answers on an idle connection.
async fn is_answered(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    match timeout(RETURN_LIMIT, connection.ping()).await {
        Ok(answered) => answered.map(|()| true),
        Err(late) => Err(sqlx::Error::Io(late.into())),
    }
}

fn refuse_variables(is_set: impl Fn(&str) -> bool) -> Result<(), DbError> {
    match REFUSED.into_iter().find(|name| is_set(name)) {
        None => Ok(()),
        Some(name) => Err(DbError::Failed(format!(
            "the environment variable {name} would change connections to the database in a way that the \
             configuration does not show: unset it"
        ))),
    }
}

/// Everything that the environment could set otherwise is set here, but for the password and what
/// [`REFUSED`] names.
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

#[cfg(test)]
mod tests {
    use super::*;
    use tars_certs::secret;

    fn settings(password_file: PathBuf) -> Database {
        Database {
            url: Some("postgresql://tars@localhost/mesh?host=/run/pg".to_owned()),
            password_file: Some(password_file),
            ..Database::default()
        }
    }

    #[test]
    fn the_password_is_read_from_its_file_again_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        secret::write(&file, b"hunter2\n").unwrap();
        let server = Server::of(&settings(file.clone())).unwrap().unwrap();
        let (debug, shown) = (format!("{server:?}"), server.to_string());
        assert!(!debug.contains("hunter2") && !shown.contains("hunter2"));
        assert_eq!(shown, "mesh at /run/pg/.s.PGSQL.5432");
        let options = || format!("{:?}", server.bounded("s").unwrap());
        assert!(options().contains("\"hunter2\""), "without its line end");
        secret::write(&file, b"hunter3").unwrap();
        assert!(options().contains("\"hunter3\""));
    }

    #[test]
    fn a_secret_that_is_absent_or_readable_by_others_is_refused() {
        let refused = Server::of(&settings("/nonexistent/password".into()));
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("/nonexistent/password"), "{refused}");
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        secret::write_public(&open, b"hunter2").unwrap();
        let by_key = Database {
            client_certificate: Some(open.clone()),
            client_key: Some(open.clone()),
            password_file: None,
            ..settings(PathBuf::new())
        };
        for settings in [settings(open), by_key] {
            let refused = Server::of(&settings).unwrap_err().to_string();
            assert!(refused.contains("readable by everybody"), "{refused}");
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }

    #[test]
    fn a_file_without_a_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("root.crt");
        let of = || {
            let settings = Database {
                root_certificate: Some(file.clone()),
                password_file: None,
                ..settings(PathBuf::new())
            };
            Server::of(&settings).unwrap_err().to_string()
        };
        assert!(of().contains("database.root_certificate"), "{}", of());
        const BROKEN: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (text, problem) in [("", "holds no certificate"), (BROKEN, "invalid")] {
            secret::write_public(&file, text.as_bytes()).unwrap();
            assert!(of().contains(problem), "{}", of());
        }
    }

    #[test]
    fn only_the_configured_authority_is_trusted() {
        assert!(webpki_roots::TLS_SERVER_ROOTS.is_empty());
    }

    #[test]
    fn variables_that_would_change_sessions_are_refused() {
        assert_eq!(refuse_variables(|name| name == "PGPASSWORD"), Ok(()));
        for name in REFUSED {
            let refused = refuse_variables(|set| set == name).unwrap_err();
            assert!(refused.to_string().contains(name), "{refused}");
        }
    }
}
