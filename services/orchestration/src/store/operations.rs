//! The operations of governed changes, each of which takes effect once.

use crate::OrchestrationError;
use tars_runtime::db::{Fetch, Query, Transaction};

const GET: &str = "SELECT version FROM applied_operations WHERE id = $1";
const INSERT: &str =
    "INSERT INTO applied_operations (id, agent_id, version, at_us) VALUES ($1, $2, $3, $4)";

/// What became of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// It was carried out. The number is that of the version that it made, or says where it put one.
    Done(i64),
    /// It is never to take effect: a late attempt of a change that was given up changes nothing.
    Void,
}

impl Operation {
    /// How an operation is stored that is void: no version has this number.
    const VOID: i64 = -1;

    fn of(number: i64) -> Self {
        match number {
            Self::VOID => Self::Void,
            number => Self::Done(number),
        }
    }

    fn number(self) -> i64 {
        match self {
            Self::Done(number) => number,
            Self::Void => Self::VOID,
        }
    }
}

/// What became of an operation; `None` while nothing did.
pub(crate) async fn operation(
    tx: &mut Transaction,
    id: &str,
) -> Result<Option<Operation>, OrchestrationError> {
    let number = tx.optional_value(Query::new(GET).bind(id), "version");
    Ok(number.await?.map(Operation::of))
}

pub(crate) async fn insert_operation(
    tx: &mut Transaction,
    id: &str,
    agent: &str,
    operation: Operation,
    now_us: i64,
) -> Result<(), OrchestrationError> {
    let insert = Query::new(INSERT)
        .bind(id)
        .bind(agent)
        .bind(operation.number())
        .bind(now_us);
    Ok(tx.execute(insert).await?.one()?)
}
