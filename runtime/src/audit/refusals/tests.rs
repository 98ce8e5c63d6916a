use super::*;
use crate::{audit::Severity, clock::Clock};

const SECOND: Duration = Duration::from_secs(1);

struct Source {
    clock: Clock,
    now: Instant,
    refusals: Refusals,
}

impl Source {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            clock: Clock::manual(Duration::from_secs(1_800_000_000)),
            now,
            refusals: Refusals::new(now),
        }
    }

    fn after(&mut self, time: Duration) {
        self.clock.advance(time);
        self.now += time;
    }

    fn call(&self, caller: &str, method: &str, result: &str) -> Record {
        Record::new(&self.clock, "orchestration", "call")
            .severity(Severity::Warning)
            .caller(caller)
            .result(result)
            .detail(OWNER, caller)
            .method(method)
    }

    fn refused(&mut self, caller: &str, method: &str) -> Option<Record> {
        let record = self.call(caller, method, "PERMISSION_DENIED");
        self.refusals.take(record, self.now)
    }
}

fn count(record: &Record) -> u64 {
    record.details["count"].parse().unwrap()
}

#[test]
fn the_first_is_written_at_once_and_those_that_follow_once_a_minute() {
    let mut s = Source::new();
    let first = s.refused("user:eve", "/reload").expect("the first");
    assert!(!first.details.contains_key("count"));
    for _ in 0..500 {
        s.after(SECOND / 10);
        assert_eq!(s.refused("user:eve", "/reload"), None);
    }
    assert!(s.refusals.due(s.now).is_empty(), "within the minute");
    s.after(SECOND * 10);
    let due = s.refusals.due(s.now);
    let [folded] = &due[..] else {
        panic!("{due:?}");
    };
    assert_eq!(count(folded), 500);
    assert_eq!(
        (folded.caller.as_str(), folded.method.as_str()),
        ("user:eve", "/reload")
    );
    assert_eq!(
        (
            folded.details["first_at"].as_str(),
            folded.details["last_at"].as_str()
        ),
        ("2027-01-15T08:00:00.1Z", "2027-01-15T08:00:50Z")
    );
    assert_ne!(folded.event_id, first.event_id);
    // They continue: still one per minute, and none by itself.
    assert_eq!(s.refused("user:eve", "/reload"), None);
    s.after(WINDOW);
    assert_eq!(count(&s.refusals.due(s.now)[0]), 1);
    // A quiet minute ends it.
    s.after(WINDOW);
    assert!(s.refusals.due(s.now).is_empty());
    assert!(s.refusals.groups.is_empty() && s.refusals.owners.is_empty());
    assert!(s.refused("user:eve", "/reload").is_some());
}

#[test]
fn successful_calls_are_never_folded() {
    let mut s = Source::new();
    for _ in 0..100 {
        let done = s.call("user:admin", "/approve", "OK");
        assert!(s.refusals.take(done, s.now).is_some());
    }
    assert!(s.refusals.groups.is_empty());
}

#[test]
fn another_caller_method_result_or_reason_is_another_kind() {
    let mut s = Source::new();
    let base = s.call("user:eve", "/reload", "PERMISSION_DENIED");
    let mut kinds = vec![
        base.clone(),
        base.clone().caller("user:bob"),
        Record {
            event_type: "authz.access.denied".to_owned(),
            ..base.clone()
        },
        base.clone().method("/train"),
        base.clone().result("NOT_FOUND"),
        base.clone().detail(REASON, "FOUR_EYES"),
    ];
    let mut by_peer = base;
    by_peer.peer = "/client/ci".to_owned();
    kinds.push(by_peer);
    for record in &kinds {
        assert!(
            s.refusals.take(record.clone(), s.now).is_some(),
            "{record:?}"
        );
        assert!(s.refusals.take(record.clone(), s.now).is_none());
    }
    assert_eq!(s.refusals.rest().len(), kinds.len());
}

#[test]
fn one_owner_cannot_fill_the_list_by_changing_methods_or_keys() {
    let mut s = Source::new();
    let (mut total, mut folded) = (0, 0);
    for minute in 0..10 {
        let mut written = 0;
        for n in 0..1000 {
            let key = format!("key:{}", n % 40);
            let record = s.call(&key, &format!("/method/{n}"), "PERMISSION_DENIED");
            let record = record.detail(OWNER, "eve");
            written += u64::from(s.refusals.take(record, s.now).is_some());
        }
        s.after(WINDOW);
        let due = s.refusals.due(s.now);
        assert!(written <= KINDS_OF_AN_OWNER as u64, "minute {minute}");
        assert!(due.len() <= KINDS_OF_AN_OWNER + 1, "minute {minute}");
        total += written;
        folded += due.iter().map(count).sum::<u64>();
        let many = due.iter().max_by_key(|r| count(r)).unwrap();
        assert_eq!(
            (many.details[OWNER].as_str(), many.caller.as_str()),
            ("eve", ""),
            "what they have in common"
        );
        let named = many.details["methods"].split(", ").count();
        assert_eq!(named, NAMED, "some of what was tried");
    }
    assert_eq!(total + folded, 10_000, "none is lost");
    assert!(
        s.refused("user:bob", "/reload").is_some(),
        "others are seen"
    );
}

#[test]
fn the_table_is_bounded_and_refusals_beyond_it_are_counted() {
    let mut s = Source::new();
    let mut written = 0;
    for n in 0..3 * KINDS {
        written += u64::from(s.refused(&format!("user:{n}"), "/reload").is_some());
    }
    assert_eq!(written, KINDS as u64);
    assert!(s.refusals.groups.len() <= KINDS + 1);
    let rest = s.refusals.rest();
    let [beyond] = &rest[..] else {
        panic!("{} records", rest.len());
    };
    assert_eq!(count(beyond) + written, 3 * KINDS as u64);
    assert_eq!(beyond.method, "/reload");
    assert!(beyond.caller.is_empty() && !beyond.details.contains_key(OWNER));
}

#[test]
fn several_results_are_summed_up_as_refused() {
    let mut s = Source::new();
    for n in 0..KINDS_OF_AN_OWNER + 4 {
        let result = if n % 2 == 0 { "NOT_FOUND" } else { "ABORTED" };
        let record = s.call("user:eve", &format!("/{n}"), result);
        s.refusals.take(record, s.now);
    }
    let rest = s.refusals.rest();
    assert_eq!((rest.len(), count(&rest[0])), (1, 4));
    assert_eq!(rest[0].result, "REFUSED");
}

#[test]
fn refusals_beyond_an_owners_share_keep_their_type_and_the_gravest_severity() {
    let mut s = Source::new();
    for n in 0..KINDS_OF_AN_OWNER + 8 {
        let mut record = s.call("user:eve", &format!("/{n}"), "PERMISSION_DENIED");
        if n % 2 == 0 {
            record.event_type = "authz.access.denied".to_owned();
        }
        if n == KINDS_OF_AN_OWNER + 4 {
            record.severity = Severity::Critical;
        }
        s.refusals.take(record, s.now);
    }
    let mut rest = s.refusals.rest();
    rest.sort_by(|a, b| a.event_type.cmp(&b.event_type));
    let seen: Vec<_> = rest
        .iter()
        .map(|r| (r.event_type.as_str(), r.severity, count(r)))
        .collect();
    assert_eq!(
        seen,
        [
            ("authz.access.denied", Severity::Critical, 4),
            ("call", Severity::Warning, 4),
        ]
    );
}

#[test]
fn a_summary_of_one_minute_does_not_carry_over_to_the_next() {
    let mut s = Source::new();
    for n in 0..KINDS_OF_AN_OWNER {
        s.refused("user:eve", &format!("/{n}"));
    }
    s.refused("user:eve", "/first");
    s.refused("user:eve", "/second");
    s.after(WINDOW);
    assert!(s.refusals.due(s.now).iter().any(|r| r.method.is_empty()));
    for n in 0..KINDS_OF_AN_OWNER {
        s.refused("user:eve", &format!("/{n}"));
    }
    s.refused("user:eve", "/third");
    s.after(WINDOW);
    assert!(s.refusals.due(s.now).iter().any(|r| r.method == "/third"));
}

#[test]
fn an_owner_regains_its_share_whatever_its_refusals_have_in_common() {
    let mut s = Source::new();
    for owner in ["eve", "mallory"] {
        let record = s.call("peer:/gateway", "/reload", "UNAUTHENTICATED");
        s.refusals.take(record.detail(OWNER, owner), s.now);
    }
    s.after(WINDOW);
    s.refusals.due(s.now);
    s.after(WINDOW);
    s.refusals.due(s.now);
    assert!(s.refusals.groups.is_empty() && s.refusals.owners.is_empty());
}
