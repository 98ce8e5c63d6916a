//! Why a database access failed, in terms that a caller can act on.
//!
//! The drivers' errors end here: [`DbError`] is the only mapping from them, so that a lost
//! connection is never mistaken for a defect, nor the other way round.

use sqlx::error::{DatabaseError, ErrorKind};
use std::fmt::Display;

/// A failed database access.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DbError {
    /// The database is busy, full, unreachable or shutting down, and nothing was changed. The same
    /// call may succeed later.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// The connection was lost while a transaction was being committed: it may have been, or not.
    #[error("the outcome of a commit is unknown: {0}")]
    InDoubt(String),
    /// The transaction could not be serialised with others, or was chosen to end a deadlock.
    #[error("the transaction conflicts with another: {0}")]
    Conflict(String),
    /// A value that must be unique is present already.
    #[error("a unique value is taken: {0}")]
    Unique(String),
    /// A row holds something that this version does not write.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// The schema is not one that this version can work on.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// Anything else: a statement that the database rejects, a column of another type, a damaged
    /// file. Repeating the call does not help.
    #[error("the database failed: {0}")]
    Failed(String),
}

impl DbError {
    /// Whether the same work, started anew, may succeed. Work that is not idempotent has to look
    /// first what became of it: [`InDoubt`](Self::InDoubt) is transient too.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_) | Self::InDoubt(_) | Self::Conflict(_)
        )
    }

    /// Whether a value that must be unique is present already.
    pub fn is_unique_violation(&self) -> bool {
        matches!(self, Self::Unique(_))
    }

    /// Names the server that could not be used.
    pub(super) fn at(self, server: &impl Display) -> Self {
        match self {
            Self::Unavailable(cause) => Self::Unavailable(format!("{server}: {cause}")),
            Self::Failed(cause) => Self::Failed(format!("{server}: {cause}")),
            other => other,
        }
    }

    /// A failure while committing. Only an answer of the database says that nothing was changed: whatever
    /// else failed, the outcome is open.
    pub(super) fn of_commit(error: sqlx::Error) -> Self {
        let is_answer = matches!(error, sqlx::Error::Database(_));
        match Self::from(error) {
            Self::Unavailable(cause) => Self::InDoubt(cause),
            other if is_answer => other,
            other => Self::InDoubt(other.to_string()),
        }
    }
}

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        let cause = cause(&error);
        match error {
            E::Database(e) => match class(e.as_ref()) {
                Class::Unavailable => Self::Unavailable(cause),
                Class::Conflict => Self::Conflict(cause),
                Class::Unique => Self::Unique(cause),
                Class::Other => Self::Failed(cause),
            },
            // What a proxy sends, or a connection holds that was closed in between, is not the protocol.
            E::Io(_)
            | E::Tls(_)
            | E::Protocol(_)
            | E::PoolTimedOut
            | E::PoolClosed
            | E::WorkerCrashed
            | E::BeginFailed => Self::Unavailable(cause),
            _ => Self::Failed(cause),
        }
    }
}

/// What a database or a connection to it reports, without the driver's own words, and with what can be
/// done about it on the server.
fn cause(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(e) => match advice(&e.code().unwrap_or_default()) {
            Some(advice) => format!("{} ({advice})", e.message()),
            None => e.message().to_owned(),
        },
        sqlx::Error::Io(e) => e.to_string(),
        other => other.to_string(),
    }
}

/// What helps against a server's refusal, by its SQLSTATE.
fn advice(state: &str) -> Option<&'static str> {
    match state {
        "28000" => {
            Some("`createuser` makes a role; pg_hba.conf says which may log in, and from where")
        }
        "28P01" => Some("the password comes from database.password_file, or PGPASSWORD"),
        "3D000" => Some("make it with `createdb --owner ROLE NAME`"),
        "53300" => Some(
            "max_connections has to allow for database.readers and database.writers of each service in \
             each process",
        ),
        _ => None,
    }
}

/// What a database says of itself, by its code.
enum Class {
    Unavailable,
    Conflict,
    Unique,
    Other,
}

fn class(error: &(dyn DatabaseError + 'static)) -> Class {
    if error.kind() == ErrorKind::UniqueViolation {
        return Class::Unique;
    }
    let code = error.code().unwrap_or_default();
    // SQLSTATE has five characters; SQLite's extended codes have up to four digits.
    match code.parse::<u32>() {
        Ok(number) if code.len() < 5 => sqlite_class(number),
        _ => postgres_class(&code),
    }
}

/// The low byte is SQLite's primary code; the rest is detail.
fn sqlite_class(code: u32) -> Class {
    /// BUSY, LOCKED, IOERR, FULL and CANTOPEN.
    const UNAVAILABLE: [u32; 5] = [5, 6, 10, 13, 14];
    if UNAVAILABLE.contains(&(code & 0xff)) {
        Class::Unavailable
    } else {
        Class::Other
    }
}

/// SQLSTATE, by its class (the first two characters) or in full.
fn postgres_class(state: &str) -> Class {
    /// A serialisation failure and a deadlock.
    const CONFLICT: [&str; 2] = ["40001", "40P01"];
    /// A connection that failed or was refused, a server out of resources, an operator's
    /// intervention (shutdown, a cancelled statement), an error of the system.
    const UNAVAILABLE: [&str; 5] = ["08", "28", "53", "57", "58"];
    /// A lock that was not granted in time, a session ended while idle in a transaction, a server
    /// that only reads (a standby).
    const ALSO_UNAVAILABLE: [&str; 3] = ["55P03", "25P03", "25006"];
    if CONFLICT.contains(&state) {
        Class::Conflict
    } else if ALSO_UNAVAILABLE.contains(&state)
        || state.get(..2).is_some_and(|c| UNAVAILABLE.contains(&c))
    {
        Class::Unavailable
    } else {
        Class::Other
    }
}

/// Why a process does not start on a database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// A migration was applied that this version does not know.
    #[error(
        "migration {0} was applied by a newer version: start the version that wrote it, or \
         restore a backup from before"
    )]
    Newer(i64),
    /// A migration was applied with another text than this version has.
    #[error(
        "migration {0} was modified after it was applied: start the version \
         that wrote it, or restore a backup"
    )]
    Modified(i64),
    /// Migrations are pending, and `database.migrate` is off.
    #[error(
        "the database is at migration {applied}, and this version needs migration {needed}: run \
         `tars db migrate`, once the replicas of older versions are stopped"
    )]
    Older {
        /// The last migration that was applied; zero when none is.
        applied: i64,
        /// The last migration of this version.
        needed: i64,
    },
    /// There is no schema, and `database.migrate` is off.
    #[error("the database has no schema {0}: run `tars db migrate`")]
    Absent(String),
    /// The schema belongs to a role that can change what is in it.
    #[error(
        "the schema {schema} belongs to the role {owner}, not to {expected}: if that role is trusted with \
         all that is in it, name it in database.schema_owner"
    )]
    Owner {
        /// The schema.
        schema: String,
        /// The role that owns it.
        owner: String,
        /// The role that should.
        expected: String,
    },
}

/// A row that cannot be read, because its content is not what this version writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("row {row} of {table}: {problem}")]
pub struct Corrupt {
    /// The table.
    pub table: &'static str,
    /// The key of the row.
    pub row: String,
    /// What is wrong with its content.
    pub problem: String,
}

impl Corrupt {
    /// Names a row and what is wrong with it.
    pub fn new(table: &'static str, row: impl ToString, problem: impl ToString) -> Self {
        Self {
            table,
            row: row.to_string(),
            problem: problem.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_postgres_are_told_apart() {
        for state in [
            "08006", "57P01", "53300", "55P03", "25P03", "28P01", "57014",
        ] {
            assert!(
                matches!(postgres_class(state), Class::Unavailable),
                "{state}"
            );
        }
        for state in ["40001", "40P01"] {
            assert!(matches!(postgres_class(state), Class::Conflict), "{state}");
        }
        for state in ["42703", "23503", "25001", "40002", "", "é"] {
            assert!(matches!(postgres_class(state), Class::Other), "{state}");
        }
    }

    #[test]
    fn codes_of_sqlite_are_told_apart() {
        for code in [5, 517, 6, 10, 3338, 13, 14] {
            assert!(matches!(sqlite_class(code), Class::Unavailable), "{code}");
        }
        for code in [1, 11, 19, 26, 787] {
            assert!(matches!(sqlite_class(code), Class::Other), "{code}");
        }
    }

    #[test]
    fn a_refusal_of_the_server_says_what_helps_there() {
        for (state, expected) in [
            ("3D000", "createdb"),
            ("28000", "createuser"),
            ("28P01", "database.password_file"),
            ("53300", "max_connections"),
        ] {
            let text = DbError::from(sqlx::Error::Database(Box::new(Answer(state)))).to_string();
            assert!(text.contains(expected), "{text}");
            assert!(
                !text.contains("answered with"),
                "the driver's words: {text}"
            );
        }
        let other = sqlx::Error::Database(Box::new(Answer("42601")));
        assert_eq!(DbError::from(other), DbError::Failed("42601".to_owned()));
    }

    #[test]
    fn a_connection_lost_in_a_commit_leaves_its_outcome_open() {
        let lost = || sqlx::Error::Io(std::io::Error::other("reset"));
        assert!(matches!(DbError::from(lost()), DbError::Unavailable(_)));
        assert!(matches!(DbError::of_commit(lost()), DbError::InDoubt(_)));
        for unanswered in [
            sqlx::Error::Protocol("unexpected response".to_owned()),
            sqlx::Error::WorkerCrashed,
            sqlx::Error::RowNotFound,
        ] {
            let open = DbError::of_commit(unanswered);
            assert!(matches!(open, DbError::InDoubt(_)), "{open:?}");
        }
    }

    /// What a database answers with a code.
    #[derive(Debug, thiserror::Error)]
    #[error("answered with {0}")]
    struct Answer(&'static str);

    impl DatabaseError for Answer {
        fn message(&self) -> &str {
            self.0
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }

        fn code(&self) -> Option<std::borrow::Cow<'_, str>> {
            Some(self.0.into())
        }

        fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
            self
        }
    }

    #[test]
    fn a_commit_that_the_database_refuses_has_a_known_outcome() {
        let answer = |code| DbError::of_commit(sqlx::Error::Database(Box::new(Answer(code))));
        let conflict = answer("40001");
        assert!(matches!(conflict, DbError::Conflict(_)), "{conflict:?}");
        let refused = answer("23503");
        assert!(matches!(refused, DbError::Failed(_)), "{refused:?}");
        let stopped = answer("57P01");
        assert!(matches!(stopped, DbError::InDoubt(_)), "{stopped:?}");
    }

    #[test]
    fn what_is_not_the_protocol_is_an_unavailable_database() {
        let closed = "unexpected response from SSLRequest: 0x00".to_owned();
        let closed = DbError::from(sqlx::Error::Protocol(closed));
        assert!(matches!(closed, DbError::Unavailable(_)), "{closed:?}");
    }
}
