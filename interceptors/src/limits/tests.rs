use super::*;
use crate::fixtures::{ME, by_credential};
use tars_certs::ClassTable;
use tars_proto::{fault, reason};
use tonic_types::StatusExt;

fn limiter(limits: Limits) -> RateLimiter {
    RateLimiter::new(&limits, Clock::manual(Duration::from_secs(1)))
}

fn outcome(limiter: &RateLimiter, user: &str, label: &str) -> Outcome {
    let call = by_credential(ME, "/gateway", user, label);
    let Charging::Ready(outcome) = limiter.charge_call(&call) else {
        panic!("a limit of this process is decided at once");
    };
    outcome
}

#[test]
fn keys_share_the_limit_of_their_owner() {
    let limiter = limiter(Limits {
        user_per_minute: 8,
        ..Limits::default()
    });
    let passes = |user: &str, label: &str| outcome(&limiter, user, label).passed();
    assert!(passes("ada", "key:1") && passes("ada", "key:2"));
    assert!(!passes("ada", "key:3") && !passes("ada", "user:ada"));
    assert!(passes("bob", "user:bob"));
}

#[test]
fn limits_are_replaced_without_forgetting_what_was_spent() {
    let limiter = limiter(Limits::default());
    let passed = || (0..50).filter(|_| outcome(&limiter, "ada", "user:ada").passed());
    assert_eq!(passed().count(), 30);
    let classes = ClassTable::default();
    let lower = "[limit.identity]\ncalls = 10\nwindow_seconds = 60";
    limiter.replace(limiter.plan().with(lower, &classes).unwrap());
    assert_eq!(passed().count(), 0);
    let higher = "[limit.identity]\ncalls = 35\nwindow_seconds = 60";
    limiter.replace(limiter.plan().with(higher, &classes).unwrap());
    assert_eq!(passed().count(), 5);
}

#[test]
fn a_refusal_says_which_limit_and_when_to_come_back() {
    let limiter = limiter(Limits {
        identity_per_minute: 1,
        ..Limits::default()
    });
    assert!(outcome(&limiter, "ada", "user:ada").status().is_ok());
    let status = outcome(&limiter, "ada", "user:ada").status().unwrap_err();
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert_eq!(
        fault::reason(&status).as_deref(),
        Some(reason::RATE_LIMITED)
    );
    let retry = status.get_details_retry_info().unwrap().retry_delay;
    assert_eq!(retry, Some(Duration::from_secs(60)));
    let quota = status.get_details_quota_failure().unwrap().violations;
    assert_eq!(quota[0].subject, "identity");
    assert_eq!(quota[0].description, "1 calls in any 60 s");
}
