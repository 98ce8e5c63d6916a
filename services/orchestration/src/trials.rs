//! What versions do on the ladder of an agent that is bound to the live mesh: how often the one in SHADOW would
//! have done the same, how often the shield blocked the one in CANARY, and when what answers falls back.
//!
//! Each replica counts the steps that it serves. The counts are stored in batches, so that what a replica has
//! not stored yet is lost when it is killed: up to [`BATCH`] steps. Whether a version falls back is decided from
//! the last steps that one replica served, and by whichever replica decides it first.

use crate::stage::{Counts, Stage};
use std::collections::{BTreeMap, VecDeque};
use tokio::sync::mpsc;

/// How many steps are counted before they are stored.
const BATCH: u64 = 20;
/// The last steps of what answers, of which at most [`MOST_BLOCKED`] may have been blocked.
const WINDOW: usize = 50;
const MOST_BLOCKED: usize = 25;
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

/// A version that is not to answer any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fall {
    pub(crate) stage: Stage,
    pub(crate) version: i64,
    pub(crate) why: String,
}

/// What a count leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Due {
    Store(i64, Counts),
    Fall(Fall),
}

/// The steps of one agent that this process served.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// What is not stored yet, by version.
    pending: BTreeMap<i64, Counts>,
    canary: Recent,
    active: Recent,
}

/// The last steps of a version.
#[derive(Debug, Default)]
struct Recent {
    version: i64,
    blocked: VecDeque<bool>,
    /// Whether it was found that the version has to fall.
    falls: bool,
}

impl Counts {
    fn steps(&self) -> u64 {
        self.shadow_steps + self.canary_steps
    }

    fn add(&mut self, other: Self) {
        self.shadow_steps += other.shadow_steps;
        self.agreed += other.agreed;
        self.canary_steps += other.canary_steps;
        self.blocked += other.blocked;
    }
}

impl Tally {
    /// The version in SHADOW was asked.
    pub(crate) fn shadowed(&mut self, version: i64, agreed: bool) -> Option<Due> {
        self.count(
            version,
            Counts {
                shadow_steps: 1,
                agreed: u64::from(agreed),
                ..Counts::default()
            },
        )
    }

    /// A version in CANARY or ACTIVE answered.
    pub(crate) fn answered(&mut self, stage: Stage, version: i64, how: Passage) -> Vec<Due> {
        let blocked = how != Passage::Allowed;
        let (recent, counted) = match stage {
            Stage::Canary => (&mut self.canary, true),
            _ => (&mut self.active, false),
        };
        let fall = recent.add(version, how).map(|why| {
            Due::Fall(Fall {
                stage,
                version,
                why,
            })
        });
        let stored = counted.then(|| Counts {
            canary_steps: 1,
            blocked: u64::from(blocked),
            ..Counts::default()
        });
        let stored = stored.and_then(|counts| self.count(version, counts));
        fall.into_iter().chain(stored).collect()
    }

    fn count(&mut self, version: i64, counts: Counts) -> Option<Due> {
        let pending = self.pending.entry(version).or_default();
        pending.add(counts);
        if pending.steps() < BATCH {
            return None;
        }
        let counts = self.pending.remove(&version)?;
        Some(Due::Store(version, counts))
    }

    /// Takes back what could not be done, so that a later step leads to it again.
    pub(crate) fn undone(&mut self, due: Due) {
        match due {
            Due::Store(version, counts) => self.pending.entry(version).or_default().add(counts),
            Due::Fall(Fall { stage, .. }) => match stage {
                Stage::Canary => self.canary.falls = false,
                _ => self.active.falls = false,
            },
        }
    }
}

impl Recent {
    /// Adds a step, and says why the version has to fall; once.
    fn add(&mut self, version: i64, how: Passage) -> Option<String> {
        if self.version != version {
            *self = Self {
                version,
                ..Self::default()
            };
        }
        self.blocked.push_back(how != Passage::Allowed);
        if self.blocked.len() > WINDOW {
            self.blocked.pop_front();
        }
        let blocked = self.blocked.iter().filter(|blocked| **blocked).count();
        let why = match how {
            _ if self.falls => return None,
            Passage::NotFinite => "an action was not finite".to_owned(),
            _ if self.blocked.len() == WINDOW && blocked > MOST_BLOCKED => {
                format!("the shield blocked {blocked} of the last {WINDOW} steps")
            }
            _ => return None,
        };
        self.falls = true;
        Some(why)
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

    fn answer(tally: &mut Tally, version: i64, how: Passage) -> Vec<Due> {
        tally.answered(Stage::Canary, version, how)
    }

    fn falls(due: &[Due]) -> usize {
        let falls = due.iter().filter(|due| matches!(due, Due::Fall(_)));
        falls.count()
    }

    #[test]
    fn steps_are_stored_in_batches_by_version() {
        let mut tally = Tally::default();
        for step in 1..BATCH {
            assert_eq!(tally.shadowed(7, step % 2 == 0), None);
            assert!(answer(&mut tally, 3, Passage::Allowed).is_empty());
        }
        let counts = Counts {
            shadow_steps: BATCH,
            agreed: BATCH / 2,
            ..Counts::default()
        };
        assert_eq!(tally.shadowed(7, true), Some(Due::Store(7, counts)));
        let due = answer(&mut tally, 3, Passage::Blocked);
        let counts = Counts {
            canary_steps: BATCH,
            blocked: 1,
            ..Counts::default()
        };
        assert_eq!(due, [Due::Store(3, counts)]);
        // What could not be stored is stored with the next step.
        tally.undone(Due::Store(3, counts));
        match answer(&mut tally, 3, Passage::Allowed).as_slice() {
            [Due::Store(3, again)] => assert_eq!(again.canary_steps, BATCH + 1),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_action_that_is_not_finite_falls_at_once_and_once() {
        let mut tally = Tally::default();
        let due = tally.answered(Stage::Active, 3, Passage::NotFinite);
        let fall = Fall {
            stage: Stage::Active,
            version: 3,
            why: "an action was not finite".to_owned(),
        };
        assert_eq!(due, [Due::Fall(fall.clone())]);
        for _ in 0..3 {
            let due = tally.answered(Stage::Active, 3, Passage::NotFinite);
            assert_eq!(falls(&due), 0);
        }
        // It did not happen, so that the next step leads to it again.
        tally.undone(Due::Fall(fall));
        let due = tally.answered(Stage::Active, 3, Passage::NotFinite);
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
        let due = tally.answered(Stage::Active, 4, Passage::Blocked);
        assert!(due.is_empty());
    }
}
