//! Following the steps of a session by its rows, at any replica.

use crate::{
    Orchestration, OrchestrationError,
    store::{SessionRow, StepRecord},
};
use std::{collections::VecDeque, sync::Arc};
use tars_runtime::{changes::Position, events::Trimmed};
use tokio::sync::watch;
use uuid::Uuid;

/// Steps that are read at once.
const READ: i64 = 64;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum StepEvent {
    Taken(Box<StepRecord>),
    /// The session was closed.
    Ended(Box<SessionRow>),
}

/// A watcher's place among the steps of a session.
#[derive(Debug)]
pub(crate) struct Watcher {
    service: Arc<Orchestration>,
    session: Uuid,
    owner: String,
    /// The last step that was returned.
    after: i64,
    ready: VecDeque<StepRecord>,
    is_over: bool,
    changed: watch::Receiver<Position>,
}

impl Orchestration {
    /// Watches the steps of a session after one.
    pub(crate) async fn watch_steps(
        self: &Arc<Self>,
        session: Uuid,
        owner: String,
        after: u64,
    ) -> Result<Watcher, OrchestrationError> {
        let changed = self.sessions.subscribe();
        let row = self.session_row(session, &owner).await?;
        let last = row.steps + i64::from(row.closed_us.is_some());
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        if after > last {
            let first_kept = u64::try_from(last + 1).unwrap_or_default();
            return Err(Trimmed { first_kept }.into());
        }
        Ok(Watcher {
            service: Arc::clone(self),
            session,
            owner,
            after,
            ready: VecDeque::new(),
            is_over: false,
            changed,
        })
    }
}

impl Watcher {
    /// Waits for the next event and returns it with its number; `None` after the end.
    pub(crate) async fn next(&mut self) -> Result<Option<(i64, StepEvent)>, OrchestrationError> {
        loop {
            if let Some(step) = self.ready.pop_front() {
                self.after = step.step;
                return Ok(Some((step.step, StepEvent::Taken(Box::new(step)))));
            }
            if self.is_over {
                return Ok(None);
            }
            self.changed.borrow_and_update();
            let row = self.read().await?;
            if !self.ready.is_empty() {
                continue;
            }
            if row.closed_us.is_some() {
                self.is_over = true;
                let number = row.steps + 1;
                return Ok((self.after < number).then(|| (number, StepEvent::Ended(Box::new(row)))));
            }
            if self.changed.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    /// Reads on. The session is read before its steps, so that none is missed when it is closed.
    async fn read(&mut self) -> Result<SessionRow, OrchestrationError> {
        let row = self.service.session_row(self.session, &self.owner).await?;
        let store = &self.service.store;
        let steps = store.steps_after(self.session, self.after, READ).await?;
        self.ready.extend(steps);
        Ok(row)
    }
}
