//! What versions do on the ladder of an agent that is bound to the live mesh: how often the one in SHADOW would
//! have done the same, how often the shield blocked the one in CANARY, and when what answers falls back: when the
//! shield blocks it, when the mesh does not keep its latency objective, or when its answers are not finite.
//!
//! Each replica counts the steps that it serves. The counts are stored in batches, so that what a replica has
//! not stored yet is lost when it is killed: up to [`BATCH`] steps. Whether a version falls back is decided from
//! the last steps that one replica served, and by whichever replica decides it first.

use crate::stage::{Attempt, Counts, Stage};
use std::collections::{BTreeMap, VecDeque};
use tokio::sync::mpsc;

/// How many steps are counted before they are stored.
const BATCH: u64 = 20;
/// The last steps of what answers, of which at most [`MOST_BLOCKED`] may have been blocked, and at most [`MOST_SLOW`]
/// taken where the mesh did not keep its objective.
const WINDOW: usize = 50;
const MOST_BLOCKED: usize = 25;
const MOST_SLOW: usize = 25;
/// Batches and falls that wait for the database.
const WAITING: usize = 64;

/// How a step of a version ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    Allowed,
    /// The shield replaced the action.
    Blocked,
    /// The action, or what it was chosen by, was not finite.
    NotFinite,
}

/// A step that a version answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) how: Passage,
    /// Whether the mesh did not keep its [objective](crate::objective) when it was taken.
    pub(crate) breached: bool,
}

/// Why a version is not to answer any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Reason {
    #[error("an action was not finite")]
    NotFinite,
    #[error("the shield blocked {0} of the last {WINDOW} steps")]
    Blocked(usize),
    #[error("the latency objective of the mesh was breached in {0} of the last {WINDOW} steps")]
    Objective(usize),
    /// Its weights are damaged, or lost.
    #[error("{0}")]
    Unusable(String),
}

impl Reason {
    /// The word by which metrics tell it from the others.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::NotFinite => "not_finite",
            Self::Blocked(_) => "blocked",
            Self::Objective(_) => "objective",
            Self::Unusable(_) => "unusable",
        }
    }
}

/// A version that is not to answer any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fall {
    pub(crate) stage: Stage,
    pub(crate) attempt: Attempt,
    pub(crate) why: Reason,
}

/// What a count leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Due {
    Store(Attempt, Counts),
    Fall(Fall),
}

/// The steps of one agent that this process served.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// What is not stored yet.
    pending: BTreeMap<Attempt, Counts>,
    canary: Recent,
    active: Recent,
}

/// The last steps of a version in one trial.
#[derive(Debug, Default)]
struct Recent {
    attempt: Attempt,
    steps: VecDeque<Step>,
    /// Whether it was found that the version has to fall.
    falls: bool,
}

impl Counts {
    fn steps(&self) -> u64 {
        self.shadow_steps + self.canary_steps + self.active_steps
    }

    fn add(&mut self, other: Self) {
        self.shadow_steps += other.shadow_steps;
        self.agreed += other.agreed;
        self.canary_steps += other.canary_steps;
        self.blocked += other.blocked;
        self.active_steps += other.active_steps;
        self.active_blocked += other.active_blocked;
    }
}

impl Tally {
    /// The version in SHADOW was asked.
    pub(crate) fn shadowed(&mut self, attempt: Attempt, agreed: bool) -> Option<Due> {
        self.count(
            attempt,
            Counts {
                shadow_steps: 1,
                agreed: u64::from(agreed),
                ..Counts::default()
            },
        )
    }

    /// The ACTIVE version answered while a governed change held the agent, which asks how often it did.
    pub(crate) fn watched(&mut self, attempt: Attempt, how: Passage) -> Option<Due> {
        self.count(
            attempt,
            Counts {
                active_steps: 1,
                active_blocked: u64::from(how != Passage::Allowed),
                ..Counts::default()
            },
        )
    }

    /// A version in CANARY or ACTIVE answered.
    pub(crate) fn answered(&mut self, stage: Stage, attempt: Attempt, step: Step) -> Vec<Due> {
        let blocked = step.how != Passage::Allowed;
        let (recent, counted) = match stage {
            Stage::Canary => (&mut self.canary, true),
            _ => (&mut self.active, false),
        };
        let fall = recent.add(attempt, step).map(|why| {
            Due::Fall(Fall {
                stage,
                attempt,
                why,
            })
        });
        let stored = counted.then(|| Counts {
            canary_steps: 1,
            blocked: u64::from(blocked),
            ..Counts::default()
        });
        let stored = stored.and_then(|counts| self.count(attempt, counts));
        fall.into_iter().chain(stored).collect()
    }

    fn count(&mut self, attempt: Attempt, counts: Counts) -> Option<Due> {
        let pending = self.pending.entry(attempt).or_default();
        pending.add(counts);
        if pending.steps() < BATCH {
            return None;
        }
        let counts = self.pending.remove(&attempt)?;
        Some(Due::Store(attempt, counts))
    }

    /// Takes back what could not be done, so that a later step leads to it again.
    pub(crate) fn undone(&mut self, due: Due) {
        match due {
            Due::Store(attempt, counts) => self.pending.entry(attempt).or_default().add(counts),
            Due::Fall(Fall { stage, attempt, .. }) => {
                let recent = match stage {
                    Stage::Canary => &mut self.canary,
                    _ => &mut self.active,
                };
                recent.falls &= recent.attempt != attempt;
            }
        }
    }
}

impl Recent {
    /// Adds a step, and says why the version has to fall; once.
    fn add(&mut self, attempt: Attempt, step: Step) -> Option<Reason> {
        if self.attempt != attempt {
            *self = Self {
                attempt,
                ..Self::default()
            };
        }
        self.steps.push_back(step);
        if self.steps.len() > WINDOW {
            self.steps.pop_front();
        }
        let why = self.reason(step.how).filter(|_| !self.falls)?;
        self.falls = true;
        Some(why)
    }

    /// Why it has to fall after a step; of a shorter window only what is not finite counts.
    fn reason(&self, how: Passage) -> Option<Reason> {
        if how == Passage::NotFinite {
            return Some(Reason::NotFinite);
        }
        let count = |is: fn(&Step) -> bool| self.steps.iter().filter(|step| is(step)).count();
        let blocked = count(|step| step.how != Passage::Allowed);
        let breached = count(|step| step.breached);
        match self.steps.len() == WINDOW {
            true if blocked > MOST_BLOCKED => Some(Reason::Blocked(blocked)),
            true if breached > MOST_SLOW => Some(Reason::Objective(breached)),
            _ => None,
        }
    }
}

/// What the steps of an agent lead to, for the task that does it.
#[derive(Debug, Clone)]
pub(crate) struct Ledger(mpsc::Sender<(&'static str, Due)>);

pub(crate) type Entries = mpsc::Receiver<(&'static str, Due)>;

impl Ledger {
    pub(crate) fn new() -> (Self, Entries) {
        let (sender, entries) = mpsc::channel(WAITING);
        (Self(sender), entries)
    }

    /// Leaves it to the task; gives it back where too much waits.
    pub(crate) fn enter(&self, agent: &'static str, due: Due) -> Result<(), Due> {
        let entered = self.0.try_send((agent, due));
        entered.map_err(|refused| match refused {
            mpsc::error::TrySendError::Full((_, due))
            | mpsc::error::TrySendError::Closed((_, due)) => due,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first trial of a version.
    fn first(version: i64) -> Attempt {
        Attempt { version, trial: 1 }
    }

    /// A step while the mesh keeps its objective.
    fn calm(how: Passage) -> Step {
        Step {
            how,
            breached: false,
        }
    }

    fn answer(tally: &mut Tally, version: i64, how: Passage) -> Vec<Due> {
        tally.answered(Stage::Canary, first(version), calm(how))
    }

    /// An allowed step of the ACTIVE version, whether the mesh keeps its objective or not.
    fn observe(tally: &mut Tally, version: i64, breached: bool) -> Vec<Due> {
        let how = Passage::Allowed;
        tally.answered(Stage::Active, first(version), Step { how, breached })
    }

    fn falls(due: &[Due]) -> usize {
        let falls = due.iter().filter(|due| matches!(due, Due::Fall(_)));
        falls.count()
    }

    #[test]
    fn steps_are_stored_in_batches_by_version() {
        let mut tally = Tally::default();
        for step in 1..BATCH {
            assert_eq!(tally.shadowed(first(7), step % 2 == 0), None);
            assert!(answer(&mut tally, 3, Passage::Allowed).is_empty());
        }
        let counts = Counts {
            shadow_steps: BATCH,
            agreed: BATCH / 2,
            ..Counts::default()
        };
        assert_eq!(
            tally.shadowed(first(7), true),
            Some(Due::Store(first(7), counts))
        );
        let due = answer(&mut tally, 3, Passage::Blocked);
        let counts = Counts {
            canary_steps: BATCH,
            blocked: 1,
            ..Counts::default()
        };
        assert_eq!(due, [Due::Store(first(3), counts)]);
        // What could not be stored is stored with the next step.
        tally.undone(Due::Store(first(3), counts));
        match answer(&mut tally, 3, Passage::Allowed).as_slice() {
            [Due::Store(attempt, again)] => {
                assert_eq!((*attempt, again.canary_steps), (first(3), BATCH + 1));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn steps_of_the_active_version_are_stored_while_they_are_watched() {
        let mut tally = Tally::default();
        let active = Attempt {
            version: 3,
            trial: 0,
        };
        for _ in 1..BATCH {
            assert_eq!(tally.watched(active, Passage::Allowed), None);
        }
        let counts = Counts {
            active_steps: BATCH,
            active_blocked: 1,
            ..Counts::default()
        };
        let due = tally.watched(active, Passage::Blocked);
        assert_eq!(due, Some(Due::Store(active, counts)));
    }

    #[test]
    fn an_action_that_is_not_finite_falls_at_once_and_once() {
        let mut tally = Tally::default();
        let due = tally.answered(Stage::Active, first(3), calm(Passage::NotFinite));
        let fall = Fall {
            stage: Stage::Active,
            attempt: first(3),
            why: Reason::NotFinite,
        };
        assert_eq!(due, [Due::Fall(fall.clone())]);
        for _ in 0..3 {
            let due = tally.answered(Stage::Active, first(3), calm(Passage::NotFinite));
            assert_eq!(falls(&due), 0);
        }
        // It did not happen, so that the next step leads to it again.
        tally.undone(Due::Fall(fall));
        let due = tally.answered(Stage::Active, first(3), calm(Passage::NotFinite));
        assert_eq!(falls(&due), 1);
    }

    #[test]
    fn a_version_falls_when_most_of_its_last_steps_were_blocked() {
        let mut tally = Tally::default();
        // Half of the window is not most of it.
        for step in 0..3 * WINDOW {
            let how = match step % 2 {
                0 => Passage::Blocked,
                _ => Passage::Allowed,
            };
            assert_eq!(falls(&answer(&mut tally, 3, how)), 0);
        }
        let due = answer(&mut tally, 3, Passage::Blocked);
        assert_eq!(falls(&due), 0, "the oldest one was blocked as well");
        let due = answer(&mut tally, 3, Passage::Blocked);
        assert_eq!(falls(&due), 1);
    }

    #[test]
    fn few_steps_and_those_of_another_version_say_nothing() {
        let mut tally = Tally::default();
        for _ in 1..WINDOW {
            assert_eq!(falls(&answer(&mut tally, 3, Passage::Blocked)), 0);
        }
        for _ in 1..WINDOW {
            assert_eq!(falls(&answer(&mut tally, 4, Passage::Blocked)), 0);
        }
        assert_eq!(falls(&answer(&mut tally, 4, Passage::Blocked)), 1);
        // The ACTIVE version has steps of its own.
        let due = tally.answered(Stage::Active, first(4), calm(Passage::Blocked));
        assert!(due.is_empty());
    }

    #[test]
    fn an_earlier_trial_says_nothing_about_the_next_one() {
        let mut tally = Tally::default();
        let trial = |trial| Attempt { version: 3, trial };
        let mut blocked = |trial| tally.answered(Stage::Canary, trial, calm(Passage::Blocked));
        let fall = (0..WINDOW).find_map(|_| {
            let due = blocked(trial(1)).into_iter();
            due.rev().find(|due| matches!(due, Due::Fall(_)))
        });
        // Neither the steps of the first trial nor its fall.
        for _ in 1..WINDOW {
            assert_eq!(falls(&blocked(trial(2))), 0);
        }
        assert_eq!(falls(&blocked(trial(2))), 1);
        // The first fall failed, which is not the one that the second trial led to.
        tally.undone(fall.unwrap());
        let due = tally.answered(Stage::Canary, trial(2), calm(Passage::NotFinite));
        assert_eq!(falls(&due), 0);
        // What was not stored of the first trial is stored as that.
        let due = tally.answered(Stage::Canary, trial(1), calm(Passage::Allowed));
        assert_eq!(due, []);
        assert_eq!(
            tally.pending[&trial(1)].canary_steps,
            WINDOW as u64 % BATCH + 1
        );
    }

    #[test]
    fn a_version_falls_when_the_objective_was_breached_in_most_of_its_last_steps() {
        let mut tally = Tally::default();
        for step in 0..3 * WINDOW {
            // Half of the window is not most of it.
            assert_eq!(observe(&mut tally, 3, step % 2 == 0), []);
        }
        assert_eq!(
            observe(&mut tally, 3, true),
            [],
            "the oldest one was one too"
        );
        let why = Reason::Objective(MOST_SLOW + 1);
        let fall = Fall {
            stage: Stage::Active,
            attempt: first(3),
            why,
        };
        assert_eq!(observe(&mut tally, 3, true), [Due::Fall(fall.clone())]);
        assert!(fall.why.to_string().contains("26 of the last 50"));
        assert_eq!(observe(&mut tally, 3, true), [], "once");
        tally.undone(Due::Fall(fall));
        assert_eq!(falls(&observe(&mut tally, 3, true)), 1);
    }

    #[test]
    fn a_breach_that_is_shorter_than_the_window_or_of_another_version_says_nothing() {
        let mut tally = Tally::default();
        for _ in 1..WINDOW {
            assert_eq!(observe(&mut tally, 3, true), [], "the window is not full");
        }
        for _ in 1..WINDOW {
            assert_eq!(observe(&mut tally, 4, true), []);
        }
        // A calm begins before the window is full, and the next breach is as long as may be.
        for _ in 0..WINDOW {
            observe(&mut tally, 5, false);
        }
        for _ in 0..5 {
            for _ in 0..MOST_SLOW {
                assert_eq!(observe(&mut tally, 5, true), []);
            }
            for _ in MOST_SLOW..WINDOW {
                assert_eq!(observe(&mut tally, 5, false), []);
            }
        }
        // Steps of CANARY are its own, and a rare block does not add to a breach.
        for _ in 0..MOST_SLOW {
            assert_eq!(observe(&mut tally, 5, true), []);
            assert_eq!(falls(&answer(&mut tally, 5, Passage::Blocked)), 0);
        }
    }

    #[test]
    fn a_canary_is_judged_by_the_objective_too() {
        let mut tally = Tally::default();
        let step = Step {
            how: Passage::Allowed,
            breached: true,
        };
        let mut answered = || tally.answered(Stage::Canary, first(3), step);
        for _ in 1..WINDOW {
            assert_eq!(falls(&answered()), 0);
        }
        let due = answered();
        let why = due.iter().find_map(|due| match due {
            Due::Fall(fall) => Some((fall.stage, fall.why.clone())),
            Due::Store(..) => None,
        });
        assert_eq!(why, Some((Stage::Canary, Reason::Objective(WINDOW))));
    }
}
