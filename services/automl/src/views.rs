//! Studies as they are shown.

use crate::{
    AutomlError,
    store::{self, StudyRow, Tally, TrialRow},
};
use tars_runtime::db::Fetch;

/// A study with its counts and its best trial.
#[derive(Debug)]
pub(crate) struct StudyView {
    pub(crate) row: StudyRow,
    pub(crate) tally: Tally,
    pub(crate) best: Option<TrialRow>,
}

impl StudyView {
    /// A study without trials.
    pub(crate) fn new(row: StudyRow) -> Self {
        Self {
            row,
            tally: Tally::default(),
            best: None,
        }
    }

    pub(crate) async fn read(db: &mut impl Fetch, row: StudyRow) -> Result<Self, AutomlError> {
        let tally = store::tally_of(db, row.id).await?;
        let best = match tally.complete {
            0 => None,
            _ => store::best_of(db, row.id).await?,
        };
        Ok(Self { row, tally, best })
    }
}
