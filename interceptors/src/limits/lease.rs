//! Calls that this process has taken from the server in advance, so that most decisions about volume are
//! local.
//!
//! What is leased has been charged. A process holds at most `size` calls of a caller that it has not
//! spent, so that in any window at most `processes × size` more calls pass than the limit itself admits. A lease
//! begins with one call and doubles while it is spent within half of its life; what is not spent within its
//! life is dropped, which only errs towards refusing.

use super::{Decision, Limit, bounded::Bounded};
use std::{sync::Arc, time::Duration};
use tars_runtime::clock::Monotonic;

/// How long what is leased may be spent.
const LIFE: Duration = Duration::from_secs(1);
/// The largest lease.
const MOST: u32 = 256;

/// The most that one of the processes which share a limit leases of it: all together hold a twentieth of it, or
/// one call each, where that is more.
pub(super) fn size(limit: &Limit, sharing: u32) -> u32 {
    (limit.calls / sharing.max(1).saturating_mul(20)).clamp(1, MOST)
}

/// What one caller has left here.
#[derive(Debug, Default)]
struct Lease {
    left: u32,
    spent: u32,
    until: Monotonic,
    /// How much the next lease asks for; 0 before the first.
    want: u32,
    /// What the server had left after the last lease, and when all of it will be there again.
    room: u32,
    full_at: Monotonic,
    refused_until: Monotonic,
    /// Whether a lease has been asked for.
    asked: bool,
}

/// What is known here about the next call of a caller.
#[derive(Debug)]
pub(super) enum Take {
    /// It passes, and this many more are to be leased meanwhile.
    Passed(Decision, Option<Ask>),
    /// It does not pass, as the server said before.
    Refused(Decision),
    /// The server is to be asked.
    Unknown(Ask),
}

/// A request for a lease.
#[derive(Debug)]
pub(super) struct Ask {
    leases: Arc<Leases>,
    key: u64,
    /// How many calls to take.
    pub(super) wanted: u32,
    /// Whether nobody else asks for this caller meanwhile.
    only: bool,
}

impl Drop for Ask {
    fn drop(&mut self) {
        if self.only {
            self.leases.map.peek(self.key, |lease| lease.asked = false);
        }
    }
}

/// What the server said.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grant {
    pub(super) taken: u32,
    pub(super) room: u32,
    pub(super) reset: Duration,
    pub(super) retry: Duration,
}

/// The leases of a process.
#[derive(Debug)]
pub(super) struct Leases {
    map: Bounded<Lease>,
}

impl Leases {
    pub(super) fn new() -> Self {
        Self {
            map: Bounded::new(),
        }
    }

    /// Takes one call from a lease of at most `size`.
    pub(super) fn take(self: &Arc<Self>, key: u64, size: u32, now: Monotonic) -> Take {
        self.map.with(key, now, |lease| {
            if now < lease.refused_until {
                return Take::Refused(lease.decision(lease.refused_until.since(now), now));
            }
            if lease.left == 0 || now >= lease.until {
                return Take::Unknown(self.ask(key, lease, size, now));
            }
            lease.left -= 1;
            lease.spent += 1;
            let low = lease.want > 1 && lease.left <= lease.want / 2 && !lease.asked;
            let more = low.then(|| self.ask(key, lease, size, now));
            Take::Passed(lease.decision(Duration::ZERO, now), more)
        })
    }

    fn ask(self: &Arc<Self>, key: u64, lease: &mut Lease, size: u32, now: Monotonic) -> Ask {
        let only = !lease.asked;
        if only {
            lease.asked = true;
            lease.resize(size, now);
        }
        let wanted = if only { lease.want - lease.left } else { 1 };
        Ask {
            leases: Arc::clone(self),
            key,
            wanted: wanted.max(1),
            only,
        }
    }

    /// What is known of a caller, of which nothing is taken.
    pub(super) fn known(&self, key: u64, now: Monotonic) -> Option<Decision> {
        self.map.peek(key, |lease| {
            lease.decision(lease.refused_until.since(now), now)
        })
    }

    /// Records what the server said; returns the decision about the call that waited for it.
    pub(super) fn granted(&self, ask: &Ask, grant: Grant, now: Monotonic) -> Decision {
        self.map.with(ask.key, now, |lease| {
            lease.room = grant.room;
            lease.full_at = now + grant.reset;
            if grant.taken == 0 {
                lease.refused_until = now + grant.retry;
                return lease.decision(grant.retry, now);
            }
            lease.left += grant.taken - 1;
            lease.spent = 1;
            lease.until = now + LIFE;
            lease.decision(Duration::ZERO, now)
        })
    }

    /// Records what was leased for later, while no call waited.
    pub(super) fn stored(&self, ask: &Ask, grant: Grant, now: Monotonic) {
        self.map.with(ask.key, now, |lease| {
            lease.room = grant.room;
            lease.full_at = now + grant.reset;
            lease.left += grant.taken;
            if grant.taken > 0 {
                lease.refused_until = Monotonic::default();
            }
            lease.spent = 0;
            lease.until = now + LIFE;
        });
    }

    /// Gives back a call that another limit refused.
    pub(super) fn give_back(&self, key: u64, now: Monotonic) {
        self.map.with(key, now, |lease| {
            lease.left += 1;
            if now >= lease.until {
                lease.until = now + LIFE;
            }
        });
    }
}

impl Lease {
    fn resize(&mut self, size: u32, now: Monotonic) {
        let half = self.until.saturating_sub(LIFE / 2);
        self.want = match self.want {
            0 => 1,
            want if now >= self.until => want.min(self.spent.max(1)),
            want if now < half => want.saturating_mul(2),
            want => want,
        }
        .clamp(1, size);
        if now >= self.until {
            self.left = 0;
        }
        self.left = self.left.min(self.want);
    }

    fn decision(&self, retry: Duration, now: Monotonic) -> Decision {
        let remaining = if retry.is_zero() {
            self.left.saturating_add(self.room)
        } else {
            0
        };
        Decision {
            remaining,
            reset: self.full_at.since(now).max(retry),
            retry,
        }
    }
}

#[cfg(test)]
mod tests;
