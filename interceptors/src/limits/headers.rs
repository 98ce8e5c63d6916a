//! What a caller is told of its limits: `RateLimit` and `RateLimit-Policy` (the IETF draft "RateLimit header
//! fields for HTTP"), and the older `X-RateLimit-*`. All of them, and `Retry-After`, are made from one outcome.
//!
//! The unit is what may come at once. Of a smoothed limit of 600 calls a minute this is 150 in 15 seconds,
//! so that the whole quota is always there after the window without a call.

use super::{Decision, Limit, Outcome};
use http::{HeaderMap, HeaderValue};
use std::{fmt::Write, time::Duration};

/// The value of each header.
#[derive(Debug)]
pub(super) struct LimitHeaders {
    policy: String,
    state: String,
    limit: u32,
    remaining: u32,
    reset_at_s: u64,
}

impl LimitHeaders {
    /// `now` is the wall clock: `X-RateLimit-Reset` is a time, and clients share no other clock with us.
    pub(super) fn new(outcome: &Outcome, now: Duration) -> Self {
        let (limit, decision) = tightest(outcome);
        let (mut policy, mut state) = (String::new(), String::new());
        for (limit, decision) in outcome.all() {
            add(&mut policy, &mut state, limit, decision);
        }
        Self {
            policy,
            state,
            limit: limit.at_once().0,
            remaining: decision.remaining,
            reset_at_s: seconds(now) + seconds(decision.reset),
        }
    }

    pub(super) fn add_to(&self, headers: &mut HeaderMap) {
        let text = |text: &str| HeaderValue::try_from(text).expect("names and numbers are ASCII");
        headers.insert("ratelimit-policy", text(&self.policy));
        headers.insert("ratelimit", text(&self.state));
        headers.insert("x-ratelimit-limit", HeaderValue::from(self.limit));
        headers.insert("x-ratelimit-remaining", HeaderValue::from(self.remaining));
        headers.insert("x-ratelimit-reset", HeaderValue::from(self.reset_at_s));
    }
}

/// The limit that refused the call, else the one with the fewest calls left.
fn tightest(outcome: &Outcome) -> &(Limit, Decision) {
    let fewest = outcome.all().min_by_key(|(_, d)| d.remaining);
    let tightest = outcome.refusal().or(fewest);
    tightest.unwrap_or(&outcome.class)
}

fn add(policy: &mut String, state: &mut String, limit: &Limit, decision: &Decision) {
    let (quota, window) = limit.at_once();
    let separator = if policy.is_empty() { "" } else { ", " };
    let name = limit.name;
    let (window, reset) = (seconds(window), seconds(decision.reset));
    let remaining = decision.remaining;
    // A `String` takes all that is written to it.
    write!(policy, "{separator}\"{name}\";q={quota};w={window}").ok();
    write!(state, "{separator}\"{name}\";r={remaining};t={reset}").ok();
}

/// Whole seconds, rounded up: nobody is told to come too early.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::LimitName;

    const SECOND: Duration = Duration::from_secs(1);

    fn decision(remaining: u32, reset: u64, retry: u64) -> Decision {
        Decision {
            remaining,
            reset: Duration::from_millis(reset),
            retry: Duration::from_millis(retry),
        }
    }

    fn headers(outcome: &Outcome) -> HeaderMap {
        let mut headers = HeaderMap::new();
        LimitHeaders::new(outcome, 1000 * SECOND).add_to(&mut headers);
        headers
    }

    #[test]
    fn the_unit_is_what_may_come_at_once() {
        let user = Limit::new(LimitName::User, 600, 60 * SECOND);
        let told = headers(&Outcome::of(user, decision(149, 100, 0)));
        assert_eq!(told["ratelimit-policy"], "\"user\";q=150;w=15");
        assert_eq!(told["ratelimit"], "\"user\";r=149;t=1");
        assert_eq!(told["x-ratelimit-limit"], "150");
        assert_eq!(told["x-ratelimit-remaining"], "149");
        assert_eq!(told["x-ratelimit-reset"], "1001");
    }

    #[test]
    fn the_older_headers_speak_of_the_limit_that_refuses() {
        let auth = Limit::new(LimitName::Auth, 10, 60 * SECOND);
        let changes = Limit::new(LimitName::KeyChanges, 20, 3600 * SECOND);
        let outcome = Outcome {
            class: (auth, decision(0, 59_001, 0)),
            budget: Some((changes, decision(0, 3_000_000, 1_200_500))),
        };
        let told = headers(&outcome);
        let policy = "\"auth\";q=10;w=60, \"key-changes\";q=20;w=3600";
        assert_eq!(told["ratelimit-policy"], policy);
        let state = "\"auth\";r=0;t=60, \"key-changes\";r=0;t=3000";
        assert_eq!(told["ratelimit"], state);
        assert_eq!(told["x-ratelimit-limit"], "20");
        assert_eq!(told["x-ratelimit-reset"], "4000");
    }

    #[test]
    fn the_older_headers_speak_of_the_limit_that_ends_first() {
        let user = Limit::new(LimitName::User, 600, 60 * SECOND);
        let me = Limit::new(LimitName::Identity, 30, 60 * SECOND);
        let outcome = Outcome {
            class: (user, decision(100, 5000, 0)),
            budget: Some((me, decision(29, 60_000, 0))),
        };
        assert_eq!(headers(&outcome)["x-ratelimit-limit"], "30");
        assert_eq!(headers(&outcome)["x-ratelimit-remaining"], "29");
    }
}
