//! What a holder knows of its lease: a state machine without I/O.

use crate::clock::Monotonic;

/// Why a lease was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// It was not renewed before its end by the monotonic clock.
    Expired,
    /// Another token is current, or none.
    Superseded,
    /// The process stops.
    Stopping,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The transaction that takes the lease is not committed. Its row is not there for others, the
    /// keeper among them: a renewal would not find it.
    Taking { ends: Option<Monotonic> },
    /// The lease is held until its end, which each renewal moves; for ever where there is none.
    Held { ends: Option<Monotonic> },
    /// The work has to stop, and the lease is not renewed any more.
    Lost(Loss),
    /// The work is done with the lease.
    Released,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The transaction that took the lease is committed.
    Committed,
    /// The database took a renewal.
    Renewed { ends: Monotonic },
    /// The clock was read.
    Read(Monotonic),
    /// The database has another token, or none.
    Superseded,
    /// The process stops.
    Stopping,
    /// The lease is given up.
    Released,
}

impl State {
    /// The state after an event. What is lost stays lost, since its work was told to stop.
    pub(super) fn after(self, event: Event) -> Self {
        match (self, event) {
            (_, Event::Released) => Self::Released,
            (Self::Taking { ends }, Event::Committed) => Self::Held { ends },
            (
                Self::Taking { ends: Some(ends) } | Self::Held { ends: Some(ends) },
                Event::Read(now),
            ) if now >= ends => Self::Lost(Loss::Expired),
            (Self::Held { ends: Some(ends) }, Event::Renewed { ends: later }) => Self::Held {
                ends: Some(ends.max(later)),
            },
            (Self::Held { .. }, Event::Superseded) => Self::Lost(Loss::Superseded),
            (Self::Taking { .. } | Self::Held { .. }, Event::Stopping) => {
                Self::Lost(Loss::Stopping)
            }
            (state, _) => state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_start(Duration::from_secs(seconds))
    }

    fn held(ends: u64) -> State {
        State::Held {
            ends: Some(at(ends)),
        }
    }

    const FOREVER: State = State::Held { ends: None };
    const LOST: [State; 3] = [
        State::Lost(Loss::Expired),
        State::Lost(Loss::Superseded),
        State::Lost(Loss::Stopping),
    ];

    fn taking(ends: u64) -> State {
        State::Taking {
            ends: Some(at(ends)),
        }
    }

    fn every_event() -> [Event; 6] {
        [
            Event::Committed,
            Event::Renewed {
                ends: at(1_000_000),
            },
            Event::Read(at(1_000_000)),
            Event::Superseded,
            Event::Stopping,
            Event::Released,
        ]
    }

    #[test]
    fn a_held_lease_is_held_until_its_end_and_not_at_it() {
        assert_eq!(held(10).after(Event::Read(at(9))), held(10));
        for now in [10, 11] {
            let after = held(10).after(Event::Read(at(now)));
            assert_eq!(after, State::Lost(Loss::Expired));
        }
    }

    #[test]
    fn a_lease_that_is_being_taken_is_held_from_the_commit_until_the_same_end() {
        assert_eq!(taking(10).after(Event::Committed), held(10));
        assert_eq!(
            State::Taking { ends: None }.after(Event::Committed),
            FOREVER
        );
        assert_eq!(held(10).after(Event::Committed), held(10));
    }

    #[test]
    fn a_lease_that_is_being_taken_can_end_and_is_neither_renewed_nor_superseded() {
        for event in [
            Event::Renewed { ends: at(20) },
            Event::Superseded,
            Event::Read(at(9)),
        ] {
            assert_eq!(taking(10).after(event), taking(10), "{event:?}");
        }
        assert_eq!(
            taking(10).after(Event::Read(at(10))),
            State::Lost(Loss::Expired)
        );
        assert_eq!(
            taking(10).after(Event::Stopping),
            State::Lost(Loss::Stopping)
        );
    }

    #[test]
    fn a_renewal_moves_the_end_and_an_older_one_does_not_move_it_back() {
        let renewed = held(10).after(Event::Renewed { ends: at(20) });
        assert_eq!(renewed, held(20));
        assert_eq!(renewed.after(Event::Renewed { ends: at(15) }), held(20));
    }

    #[test]
    fn a_held_lease_that_another_holder_took_is_lost() {
        for state in [held(10), FOREVER] {
            let after = state.after(Event::Superseded);
            assert_eq!(after, State::Lost(Loss::Superseded));
        }
    }

    #[test]
    fn a_held_lease_is_lost_when_the_process_stops() {
        for state in [held(10), FOREVER] {
            let after = state.after(Event::Stopping);
            assert_eq!(after, State::Lost(Loss::Stopping));
        }
    }

    #[test]
    fn a_lease_without_an_end_does_not_expire() {
        assert_eq!(FOREVER.after(Event::Read(at(u64::MAX))), FOREVER);
        assert_eq!(FOREVER.after(Event::Renewed { ends: at(1) }), FOREVER);
    }

    #[test]
    fn a_lost_lease_stays_lost_for_the_first_reason() {
        for state in LOST {
            for event in every_event() {
                let expected = match event {
                    Event::Released => State::Released,
                    _ => state,
                };
                assert_eq!(state.after(event), expected, "{event:?}");
            }
        }
    }

    #[test]
    fn any_lease_can_be_released_and_stays_so() {
        for state in [taking(10), held(10), FOREVER].into_iter().chain(LOST) {
            assert_eq!(state.after(Event::Released), State::Released);
        }
        for event in every_event() {
            assert_eq!(State::Released.after(event), State::Released, "{event:?}");
        }
    }
}
