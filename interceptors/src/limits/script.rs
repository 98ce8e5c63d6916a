//! The scripts that run inside the server, with what they are given and what they reply.

use super::{Charge, Decision, Limit, Subject, lease::Grant, present::Told};
use sha2::{Digest, Sha256};
use std::{fmt::Write, time::Duration};
use tars_runtime::{bus::Server, scripts::Scripts};

/// Every script, in the order of the numbers below.
pub(super) const SOURCES: [&str; 5] = [
    include_str!("lua/charge.lua"),
    include_str!("lua/lease.lua"),
    include_str!("lua/settle_log.lua"),
    include_str!("lua/settle_cell.lua"),
    include_str!("lua/present.lua"),
];
pub(super) const CHARGE: usize = 0;
pub(super) const LEASE: usize = 1;
pub(super) const SETTLE_LOG: usize = 2;
pub(super) const SETTLE_CELL: usize = 3;
pub(super) const PRESENT: usize = 4;

/// The key of a count. What callers name has no part in it but as a digest.
pub(super) fn key(server: &Server, charge: &Charge<'_>) -> String {
    let (kind, who): (&[u8], &[u8]) = match &charge.subject {
        Subject::Name(name) => (b"name", name.as_bytes()),
        Subject::Key(id) => (b"key", id.as_bytes()),
        Subject::Address(address) => (b"address", &address.to_be_bytes()),
        Subject::Site(site) => (b"site", &site.to_be_bytes()),
    };
    let mut digest = Sha256::new();
    for part in [charge.limit.name.as_str().as_bytes(), kind, who] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    let mut name = String::with_capacity(38);
    name.push_str("limit:");
    for byte in &digest.finalize()[..16] {
        // A `String` takes all that is written to it.
        write!(name, "{byte:02x}").ok();
    }
    Scripts::key(server, &name)
}

pub(super) fn microseconds(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

/// The number of calls, and the window.
pub(super) fn log_size(limit: &Limit) -> [f64; 2] {
    [f64::from(limit.calls), microseconds(limit.window)]
}

/// The time for one call, and how many may come at once.
pub(super) fn cell_size(limit: &Limit) -> [f64; 2] {
    let burst = limit.rate().burst();
    let interval = microseconds(limit.window) / f64::from(limit.calls.max(1));
    [interval, f64::from(burst)]
}

/// The decisions about `limits`; `None` when the reply is not one of the script. No caller waits longer than for a
/// window, whatever the server says.
pub(super) fn decisions(reply: &[i64], limits: &[&Limit]) -> Option<Vec<Decision>> {
    let (_, rows) = reply.split_first()?;
    if rows.len() != 3 * limits.len() {
        return None;
    }
    let decision = |(row, limit): (&[i64], &&Limit)| {
        let [remaining, reset, retry] = *row else {
            return None;
        };
        Some(Decision {
            remaining: count(remaining)?.min(limit.calls),
            reset: time(reset)?.min(limit.window),
            retry: time(retry)?.min(limit.window),
        })
    };
    rows.chunks(3).zip(limits).map(decision).collect()
}

/// What was leased of a limit, at most what was `wanted`; `None` when the reply is not one of the script.
pub(super) fn grant(reply: &[i64], limit: &Limit, wanted: u32) -> Option<Grant> {
    let [taken, room, reset, retry] = *reply else {
        return None;
    };
    Some(Grant {
        taken: count(taken)?.min(wanted),
        room: count(room)?.min(limit.rate().burst()),
        reset: time(reset)?.min(limit.window),
        retry: time(retry)?.min(limit.window),
    })
}

/// Who is present; `None` when the reply is not one of the script.
pub(super) fn told(reply: &[i64]) -> Option<Told> {
    let [replicas, processes] = *reply else {
        return None;
    };
    Some(Told {
        replicas: count(replicas)?,
        processes: count(processes)?,
    })
}

fn count(number: i64) -> Option<u32> {
    u32::try_from(number).ok()
}

fn time(microseconds: i64) -> Option<Duration> {
    u64::try_from(microseconds).ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::LimitName;

    const MINUTE: Duration = Duration::from_secs(60);
    const AUTH: Limit = Limit::new(LimitName::Auth, 10, MINUTE);
    const USER: Limit = Limit::new(LimitName::User, 600, MINUTE);

    #[test]
    fn a_server_gives_no_more_than_was_asked_for_and_shuts_nobody_out_for_long() {
        const MUCH: i64 = u32::MAX as i64;
        let granted = grant(&[MUCH, MUCH, i64::MAX, i64::MAX], &USER, 7).unwrap();
        assert_eq!((granted.taken, granted.room), (7, 150));
        assert_eq!((granted.reset, granted.retry), (MINUTE, MINUTE));
        let decided = decisions(&[0, MUCH, i64::MAX, i64::MAX], &[&AUTH]).unwrap()[0];
        assert_eq!(decided.remaining, 10);
        assert_eq!((decided.reset, decided.retry), (MINUTE, MINUTE));
    }

    #[test]
    fn a_reply_of_another_shape_is_none() {
        assert!(decisions(&[1, 9, 60_000_000, 0], &[&AUTH]).is_some());
        for reply in [
            &[][..],
            &[1],
            &[1, 9, 60_000_000],
            &[1, -1, 0, 0],
            &[1, 1, -5, 0],
            &[1, i64::MAX, 0, 0],
            &[1, 9, 0, 0, 9, 0, 0],
        ] {
            assert!(decisions(reply, &[&AUTH]).is_none(), "{reply:?}");
        }
        assert!(grant(&[1, 2, 3, 0], &USER, 1).is_some());
        for reply in [&[][..], &[1, 2, 3], &[-1, 2, 3, 0], &[1, 2, 3, 0, 0]] {
            assert!(grant(reply, &USER, 1).is_none(), "{reply:?}");
        }
        assert!(told(&[1, 4]).is_some());
        for reply in [&[][..], &[1], &[1, -4], &[1, 4, 4]] {
            assert!(told(reply).is_none(), "{reply:?}");
        }
    }
}
