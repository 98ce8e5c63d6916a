//! Database failures as statuses: a transient failure asks the client to retry, any other is a fault of
//! the service. The query, the path and the cause go to the log alone.

use std::time::Duration;
use tars_proto::fault;
use tars_runtime::db;
use tonic::{Code, Status};

/// The retry delay after a transient failure.
const RETRY: Duration = Duration::from_secs(1);

/// Logs the failure and returns what a client may know about it.
pub fn failed(error: &db::Error) -> Status {
    if db::is_passing(error) {
        tracing::warn!(error = %error, "the database is busy or unavailable");
        let message = "the database is busy or unavailable; retry soon";
        return fault::unavailable("STORE", message, RETRY);
    }
    tracing::error!(error = %error, "the database failed");
    fault::internal()
}

/// Logs a row that cannot be read. The client is told which one, as only an operator can repair it.
pub fn corrupt(row: &db::Corrupt) -> Status {
    let db::Corrupt {
        table,
        row: id,
        problem,
    } = row;
    tracing::error!(table, row = id, problem, "a row cannot be read");
    fault::status(Code::DataLoss, "CORRUPT_ROW", &row.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use tonic_types::StatusExt;

    const SECRET: &str = "SELECT password FROM users at /var/lib/tars/auth.db";

    fn described(error: &db::Error) -> (Code, String, bool) {
        let status = failed(error);
        assert!(!status.message().contains("SELECT") && !status.message().contains("/var"));
        let comes_again = status.get_details_retry_info().is_some();
        (status.code(), fault::reason(&status).unwrap(), comes_again)
    }

    #[test]
    fn a_transient_failure_asks_for_a_retry() {
        for error in [
            db::Error::PoolTimedOut,
            db::Error::PoolClosed,
            db::Error::Io(io::Error::other(SECRET)),
        ] {
            assert_eq!(
                described(&error),
                (Code::Unavailable, "STORE".to_owned(), true)
            );
        }
    }

    #[test]
    fn a_permanent_failure_never_asks_for_a_retry() {
        for error in [
            db::Error::RowNotFound,
            db::Error::Protocol(SECRET.to_owned()),
            db::Error::ColumnNotFound(SECRET.to_owned()),
        ] {
            assert_eq!(
                described(&error),
                (Code::Internal, "INTERNAL".to_owned(), false)
            );
        }
    }

    #[test]
    fn a_corrupt_row_is_named() {
        let status = corrupt(&db::Corrupt::new(
            "studies",
            7,
            "there is no state \"paused\"",
        ));
        assert_eq!(status.code(), Code::DataLoss);
        assert_eq!(fault::reason(&status).as_deref(), Some("CORRUPT_ROW"));
        assert!(status.message().contains("row 7 of studies"), "{status}");
    }
}
