//! The calibrations that were made, newest last.

use super::Store;
use crate::{OrchestrationError, calibration::Finding};
use tars_runtime::{
    db::{DbError, Fetch, FromRow, Query, Row, Transaction, json},
    lease::Fence,
    page::{Page, Size},
};

const INSERT: &str = "INSERT INTO calibrations (number, at_us, body) \
                      SELECT COALESCE(MAX(number), 0) + 1, $1, $2 FROM calibrations RETURNING number";
const DROP_OLD: &str = "DELETE FROM calibrations WHERE number <= $1";
const BEFORE: &str =
    "SELECT number, body FROM calibrations WHERE number < $1 ORDER BY number DESC LIMIT $2";

/// A calibration with its number.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CalibrationRow {
    pub(crate) number: i64,
    pub(crate) finding: Finding,
}

impl FromRow for CalibrationRow {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let number: i64 = row.get("number")?;
        let finding = row.named("calibrations", number).json("body")?;
        Ok(Self { number, finding })
    }
}

/// The latest calibration, as a change that is decided by it reads it.
pub(crate) async fn latest_calibration(
    tx: &mut Transaction,
) -> Result<Option<CalibrationRow>, OrchestrationError> {
    let query = Query::new(BEFORE).bind(i64::MAX).bind(1_i64);
    Ok(tx.optional(query).await?)
}

impl Store {
    /// The calibrations with a smaller number, newest first.
    pub(crate) async fn calibrations(
        &self,
        before: i64,
        size: Size,
    ) -> Result<Page<CalibrationRow>, OrchestrationError> {
        let query = Query::new(BEFORE).bind(before).bind(size.limit());
        Ok(self.db.read("calibrations.list").page(query, size).await?)
    }

    /// Adds a calibration and removes the oldest beyond `retained`.
    pub(crate) async fn insert_calibration(
        &self,
        fence: &Fence,
        at_us: i64,
        finding: &Finding,
        retained: i64,
    ) -> Result<i64, OrchestrationError> {
        let mut tx = self.begin_owned("calibrations.insert", fence).await?;
        let insert = Query::new(INSERT).bind(at_us).bind(json(finding)?);
        let number: i64 = tx.value(insert, "number").await?;
        let old = Query::new(DROP_OLD).bind(number - retained);
        tx.execute(old).await?.any();
        tx.commit().await?;
        Ok(number)
    }
}
