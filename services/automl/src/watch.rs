//! Following a study by its rows.
//!
//! Each change of a study has a number: that of a trial is with its row, the end's is the last one. What
//! a watcher has not seen are the trials with larger numbers, in their order. A trial that changes several
//! times before it is read is sent once, as it is then; nothing needs to be kept for slow watchers. Since
//! the rows are the truth, any replica answers, and a watcher who comes back at another one goes on where
//! it was.

use crate::{
    Automl, AutomlError,
    store::{Progress, StudyState, TrialRow},
    views::StudyView,
};
use std::{collections::VecDeque, sync::Arc};
use tars_runtime::{changes::Position, events::Trimmed, page};
use tokio::sync::watch;
use uuid::Uuid;

/// Trials that are read at once.
const READ: u32 = 100;

#[derive(Debug)]
pub(crate) enum StudyEvent {
    Trial(Box<TrialRow>),
    Ended(Box<StudyView>),
}

/// A watcher's place among the changes of a study.
#[derive(Debug)]
pub(crate) struct Watcher {
    automl: Arc<Automl>,
    study: Uuid,
    /// The number of the last change that was seen.
    after: i64,
    ready: VecDeque<TrialRow>,
    has_ended: bool,
    changed: watch::Receiver<Position>,
}

impl Automl {
    /// Watches a study's changes after a number.
    pub(crate) async fn watch_study(
        self: &Arc<Self>,
        study: Uuid,
        after: u64,
    ) -> Result<Watcher, AutomlError> {
        let changed = self.changes.subscribe();
        let Progress { events, .. } = self.store.progress(study).await?;
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        if after > events {
            let first_kept = unsigned(events + 1);
            return Err(Trimmed { first_kept }.into());
        }
        Ok(Watcher {
            automl: Arc::clone(self),
            study,
            after,
            ready: VecDeque::new(),
            has_ended: false,
            changed,
        })
    }
}

impl Watcher {
    /// Waits for the next change and returns it with its number; `None` after the end.
    pub(crate) async fn next(&mut self) -> Result<Option<(u64, StudyEvent)>, AutomlError> {
        while !self.has_ended {
            if let Some(trial) = self.ready.pop_front() {
                self.after = trial.event;
                let number = unsigned(trial.event);
                return Ok(Some((number, StudyEvent::Trial(Box::new(trial)))));
            }
            self.changed.borrow_and_update();
            let seen = self.automl.store.progress(self.study).await?;
            if seen.events > self.after {
                // The end has no trial, so that there may be nothing left but it.
                self.read().await?;
                if !self.ready.is_empty() {
                    continue;
                }
                if seen.state != StudyState::Running {
                    return self.end(seen.events).await.map(Some);
                }
            }
            let is_over = seen.state != StudyState::Running;
            self.has_ended = is_over || self.changed.changed().await.is_err();
        }
        Ok(None)
    }

    async fn read(&mut self) -> Result<(), AutomlError> {
        let store = &self.automl.store;
        self.ready = store
            .changed_trials(self.study, self.after, page::size(READ))
            .await?
            .rows
            .into();
        Ok(())
    }

    async fn end(&mut self, number: i64) -> Result<(u64, StudyEvent), AutomlError> {
        self.has_ended = true;
        let view = self.automl.study_view(self.study).await?;
        Ok((unsigned(number), StudyEvent::Ended(Box::new(view))))
    }
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

#[cfg(test)]
mod tests;
