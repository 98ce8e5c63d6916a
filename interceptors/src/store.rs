//! How a failed database access is reported to clients: the one place where a [`DbError`] gets a
//! gRPC status. The statement, the path and the cause go to the log alone.

use std::time::Duration;
use tars_proto::{fault, reason, unavailable::Unavailable};
use tars_runtime::db::{Corrupt, DbError};
use tonic::{Code, Status};

/// The retry delay after a transient failure.
const RETRY: Duration = Duration::from_secs(1);

/// Logs the failure and returns what a client may know about it.
pub fn failed(error: &DbError) -> Status {
    match error {
        DbError::Unavailable(_) => {
            tracing::warn!(%error, "the database is busy or unavailable");
            let message = "the database is busy or unavailable; retry soon";
            fault::unavailable(Unavailable::Store, message, RETRY)
        }
        // The outcome is unknown, so the status carries no retry delay: clients must not retry blindly.
        DbError::InDoubt(_) => {
            tracing::warn!(%error, "the connection was lost during a commit");
            let message = "the change may have been made or not; look before trying again";
            fault::in_doubt(Unavailable::OutcomeUnknown, message)
        }
        DbError::Conflict(_) | DbError::Unique(_) => {
            tracing::warn!(%error, "a transaction lost against another");
            let message = "another change was made at the same time; try again";
            fault::status(Code::Aborted, reason::CONFLICT, message)
        }
        DbError::Corrupt(row) => corrupt(row),
        DbError::Schema(_) | DbError::Failed(_) => {
            tracing::error!(%error, "the database failed");
            fault::internal()
        }
    }
}

/// Describes a failure without the statement, the path and the cause: a row that cannot be read is
/// named, and of everything else only the fact is stated.
pub fn summary(error: &DbError) -> String {
    match error {
        DbError::Corrupt(row) => row.to_string(),
        _ => "the database failed".to_owned(),
    }
}

/// Logs a row that cannot be read. The client is told which one, as only an operator can repair it.
fn corrupt(row: &Corrupt) -> Status {
    let Corrupt {
        table,
        row: id,
        problem,
    } = row;
    tracing::error!(table, row = id, problem, "a row cannot be read");
    fault::status(Code::DataLoss, reason::CORRUPT_ROW, &row.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::StatusExt;

    const SECRET: &str = "SELECT password FROM users at /var/lib/tars/auth.db";

    fn reported(error: fn(String) -> DbError) -> (Code, String, bool) {
        let status = failed(&error(SECRET.to_owned()));
        assert!(!status.message().contains("SELECT") && !status.message().contains("/var"));
        let retries = status.get_details_retry_info().is_some();
        (status.code(), fault::reason(&status).unwrap(), retries)
    }

    #[test]
    fn only_an_unavailable_database_asks_for_a_retry() {
        for (error, code, reason) in [
            (
                DbError::Unavailable as fn(String) -> DbError,
                Code::Unavailable,
                "STORE",
            ),
            (DbError::InDoubt, Code::Unavailable, "OUTCOME_UNKNOWN"),
            (DbError::Conflict, Code::Aborted, "CONFLICT"),
            (DbError::Unique, Code::Aborted, "CONFLICT"),
            (DbError::Failed, Code::Internal, "INTERNAL"),
        ] {
            let retries = reason == "STORE";
            assert_eq!(reported(error), (code, reason.to_owned(), retries));
        }
    }

    #[test]
    fn a_row_that_cannot_be_read_is_named() {
        let row = Corrupt::new("studies", 7, "there is no state \"paused\"");
        for status in [corrupt(&row), failed(&row.clone().into())] {
            assert_eq!(status.code(), Code::DataLoss);
            assert_eq!(fault::reason(&status).as_deref(), Some("CORRUPT_ROW"));
            assert!(status.message().contains("row 7 of studies"), "{status}");
        }
    }
}
