//! Following a training run by its rows: its reports in order, then its end.
//!
//! The rows are the truth, so that any replica answers, and a watcher who comes back at another one goes
//! on where it was. A change of any run is a reason to read.

use super::RunView;
use crate::{
    Orchestration, OrchestrationError,
    store::{Report, RunRow, RunState},
};
use std::{collections::VecDeque, sync::Arc};
use tars_runtime::{changes::Position, events::Trimmed};
use tokio::sync::watch;
use uuid::Uuid;

/// Groups of reports that are read at once.
const READ: i64 = 64;

#[derive(Debug, Clone)]
pub(crate) enum TrainingEvent {
    /// A report, with the steps a second of the run as they were last measured.
    Progress(Report, Option<f64>),
    Ended(Box<RunView>),
    /// The run is in another state than before.
    State(Box<RunView>),
}

/// A watcher's place in a run's events.
#[derive(Debug)]
pub(crate) struct Watcher {
    service: Arc<Orchestration>,
    run: Uuid,
    after: i64,
    ready: VecDeque<(i64, Report)>,
    rate: Option<f64>,
    end: End,
    states: Option<States>,
    changed: watch::Receiver<Position>,
}

/// What a watcher who asks for the states of a run was told last, and is to be told next.
#[derive(Debug, Default)]
struct States {
    told: Option<RunState>,
    next: Option<Box<RunRow>>,
}

#[derive(Debug)]
enum End {
    /// The run goes on, or has reports that are not read yet.
    Ahead,
    /// It follows the reports that are ready.
    Next(Box<RunRow>),
    Passed,
}

impl Orchestration {
    /// Watches a run's events after a number.
    pub(crate) async fn watch_training(
        self: &Arc<Self>,
        run: Uuid,
        after: u64,
    ) -> Result<Watcher, OrchestrationError> {
        let changed = self.runs.subscribe();
        let row = self.run_row(run).await?;
        let last = row.last_report + i64::from(row.state.has_ended());
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        if after > last {
            let first_kept = u64::try_from(last + 1).unwrap_or_default();
            return Err(Trimmed { first_kept }.into());
        }
        Ok(Watcher {
            service: Arc::clone(self),
            run,
            after,
            ready: VecDeque::new(),
            rate: None,
            end: match row.state.has_ended() && after == last {
                true => End::Passed,
                false => End::Ahead,
            },
            states: None,
            changed,
        })
    }
}

impl Watcher {
    /// Tells the states of the run, too.
    pub(crate) fn with_states(mut self) -> Self {
        self.states = Some(States::default());
        self
    }

    /// Waits for the next event and returns it with its number; `None` after the end.
    pub(crate) async fn next(
        &mut self,
    ) -> Result<Option<(u64, TrainingEvent)>, OrchestrationError> {
        loop {
            if let Some((number, report)) = self.ready.pop_front() {
                self.after = number;
                let event = TrainingEvent::Progress(report, self.rate);
                return Ok(Some((unsigned(number), event)));
            }
            if let Some(row) = self.states.as_mut().and_then(|states| states.next.take()) {
                let run = Box::new(self.service.view(*row).await?);
                return Ok(Some((unsigned(self.after), TrainingEvent::State(run))));
            }
            match std::mem::replace(&mut self.end, End::Ahead) {
                End::Passed => {
                    self.end = End::Passed;
                    return Ok(None);
                }
                End::Next(row) => {
                    let number = unsigned(row.last_report + 1);
                    let ended = Box::new(self.service.view(*row).await?);
                    self.until_live(&ended).await;
                    self.end = End::Passed;
                    return Ok(Some((number, TrainingEvent::Ended(ended))));
                }
                End::Ahead => {}
            }
            self.changed.borrow_and_update();
            if !self.read().await? && self.changed.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    /// Waits until this process serves what it has committed: its copy is behind the rows for a moment.
    async fn until_live(&self, run: &RunView) {
        for member in &run.members {
            if let Ok(agent) = self.service.agents.get(&member.agent) {
                drop(agent.changing().lock().await);
            }
        }
    }

    /// Reads on; returns whether there is anything new. The run is read before its reports, so that none
    /// is missed when it has ended.
    async fn read(&mut self) -> Result<bool, OrchestrationError> {
        let store = &self.service.store;
        let found = store.run(self.run).await?;
        let row = found
            .ok_or_else(|| OrchestrationError::NotFound("training run", self.run.to_string()))?;
        self.rate = row.rate;
        let groups = store.reports(self.run, self.after, READ).await?;
        let is_all = i64::try_from(groups.len()).is_ok_and(|read| read < READ);
        let reports = groups.into_iter().flat_map(|group| group.numbered());
        self.ready
            .extend(reports.filter(|(number, _)| *number > self.after));
        if row.state.has_ended() && is_all {
            self.end = End::Next(Box::new(row));
            return Ok(true);
        }
        let is_told = self.states.as_mut().is_some_and(|states| states.see(row));
        Ok(!self.ready.is_empty() || is_told)
    }
}

impl States {
    /// Returns whether there is something to tell.
    fn see(&mut self, row: RunRow) -> bool {
        if self.told == Some(row.state) {
            return false;
        }
        self.told = Some(row.state);
        self.next = Some(Box::new(row));
        true
    }
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}
