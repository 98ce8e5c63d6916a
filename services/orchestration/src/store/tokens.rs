//! The fencing tokens that other services give with the calls of owned work.

use super::Store;
use crate::OrchestrationError;
use tars_runtime::db::{Fetch, Query, Transaction};

const TOKEN: &str = "SELECT token FROM work_tokens WHERE work = $1";
const ADMIT: &str = "INSERT INTO work_tokens (work, token) VALUES ($1, $2) \
                     ON CONFLICT (work) DO UPDATE SET token = excluded.token \
                     WHERE work_tokens.token <= excluded.token";

/// A piece of another service's work, and the token of whoever calls for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkToken {
    pub(crate) work: String,
    pub(crate) token: i64,
}

impl WorkToken {
    fn superseded(&self) -> OrchestrationError {
        OrchestrationError::Superseded(self.work.clone())
    }
}

/// Refuses whoever has been superseded, and remembers the token if it is the largest so far.
pub(crate) async fn admit(
    tx: &mut Transaction,
    given: &WorkToken,
) -> Result<(), OrchestrationError> {
    let admit = Query::new(ADMIT).bind(&given.work).bind(given.token);
    let admitted = tx.execute(admit).await?.swap();
    admitted.or(given.superseded())
}

impl Store {
    /// The largest token that was given for a piece of work; zero before the first.
    async fn token_of(&self, work: &str) -> Result<i64, OrchestrationError> {
        let query = Query::new(TOKEN).bind(work);
        let mut db = self.db.read("work_tokens.get");
        let found = db.optional_value(query, "token").await?;
        Ok(found.unwrap_or_default())
    }

    /// Refuses whoever has been superseded. Returns whether the token is to be remembered.
    pub(crate) async fn check_token(&self, given: &WorkToken) -> Result<bool, OrchestrationError> {
        let largest = self.token_of(&given.work).await?;
        if given.token < largest {
            return Err(given.superseded());
        }
        Ok(given.token > largest)
    }
}
