//! What a channel counts of its calls, retries, connections and addresses.

use super::{
    cast::{CHANGE, Cast, DOOR, Mood, READ, call, pushed_back, trailing, unavailable},
    *,
};
use std::time::Duration;

impl Cast {
    fn calls(&self, path: &str, code: &str) -> u64 {
        let method = &path[1..];
        let labels = format!(",method=\"{method}\",code=\"{code}\"");
        self.value("rpc_client_calls_total", &labels)
    }

    fn refused(&self, reason: &str) -> u64 {
        let labels = format!(",reason=\"{reason}\"");
        self.value("rpc_client_retries_refused_total", &labels)
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_counted_with_its_method_and_code() {
    let cast = Cast::of(2).await;
    let before = cast.calls(READ, "OK");
    cast.load(READ, 50, 8).await;
    cast.load(CHANGE, 20, 8).await;
    assert_eq!(cast.calls(READ, "OK") - before, 50);
    assert_eq!(cast.calls(CHANGE, "OK"), 20);

    let missing = Status::not_found("no");
    for mood in [Mood::Refusing(missing.clone()), Mood::Trailing(missing)] {
        cast.turn(&mood);
        cast.call(READ).await.unwrap_err();
    }
    assert_eq!(cast.calls(READ, "NOT_FOUND"), 2);

    cast.turn(&Mood::Silent);
    let timeout = Some(Duration::from_millis(50));
    call(cast.channel.clone(), CHANGE, timeout)
        .await
        .unwrap_err();
    assert_eq!(cast.calls(CHANGE, "DEADLINE_EXCEEDED"), 1);
    let in_flight = || cast.acting.iter().any(|acting| acting.in_flight() > 0);
    eventually("its work is cancelled", || async { !in_flight() }).await;
    let given_up = tokio::spawn(call(cast.channel.clone(), CHANGE, None));
    eventually("it is sent", || async { in_flight() }).await;
    given_up.abort();
    eventually("it is counted as given up", || async {
        cast.calls(CHANGE, "CANCELLED") == 1
    })
    .await;
    let labels = format!(",method=\"{}\"", &CHANGE[1..]);
    let timed = cast.value("rpc_client_call_duration_seconds_count", &labels);
    assert_eq!(timed, 22);
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_are_counted_and_so_is_why_there_was_none() {
    let cast = Cast::of(3).await;
    let before = cast.seen();
    cast.acting[0].turn(unavailable());
    let (_, failed) = cast.load(READ, 100, 8).await;
    let again = count(cast.seen() - before - 100);
    assert_eq!(failed, 0);
    assert_eq!(cast.value("rpc_client_retries_total", ""), again);

    cast.turn(&Mood::Trailing(pushed_back("-1")));
    cast.load(READ, 10, 1).await;
    assert_eq!(cast.refused("pushback"), 10);

    cast.turn(&unavailable());
    cast.load(CHANGE, 10, 1).await;
    assert_eq!(cast.value("rpc_client_retries_total", ""), again);
    cast.load(READ, 500, 8).await;
    let (attempts, budget) = (cast.refused("attempts"), cast.refused("budget"));
    assert_eq!(attempts + budget, 500, "{attempts} and {budget}");
    assert!(budget >= 300, "{budget}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ejection_is_shown_until_the_address_is_readmitted() {
    let cast = Cast::of(3).await;
    assert_eq!((cast.ejected(), cast.steps("closed", "open")), (0, 0));
    cast.acting[1].turn(unavailable());
    cast.until_ejected(READ).await;
    assert_eq!((cast.ejected(), cast.steps("closed", "open")), (1, 1));
    eventually("a probe fails", || async {
        cast.call(READ).await.unwrap();
        cast.steps("half_open", "open") > 0
    })
    .await;
    cast.acting[1].turn(Mood::Well);
    eventually("it is readmitted", || async {
        cast.call(READ).await.unwrap();
        cast.ejected() == 0
    })
    .await;
    let probes = cast.steps("open", "half_open");
    assert_eq!(probes, cast.steps("half_open", "open") + 1);
    assert_eq!(cast.steps("half_open", "closed"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_counted_while_they_are_open_and_so_are_attempts_that_fail() {
    let mut cast = Cast::of(3).await;
    let open = |cast: &Cast| cast.value("mesh_client_connections", "");
    assert_eq!(open(&cast), 3);
    assert_eq!(cast.value("mesh_client_connections_opened_total", ""), 3);
    cast.replicas.close(2).await;
    eventually("the address is tried in vain", || async {
        cast.call(READ).await.unwrap();
        cast.value(
            "mesh_client_connections_failed_total",
            ",reason=\"unreachable\"",
        ) > 0
    })
    .await;
    eventually("its connection is gone", || async { open(&cast) == 2 }).await;
    let Cast {
        channel, metrics, ..
    } = cast;
    drop(channel);
    eventually("all of them are gone", || async {
        let text = metrics.open_metrics().unwrap();
        text.contains(&format!("mesh_client_connections{{{DOOR}}} 0\n"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_attempt_says_what_became_of_those_before_it() {
    let soon = Duration::from_millis(1);
    let busy = Mood::Refusing(fault::overloaded("too much to do", soon));
    for (mood, charged) in [
        (unavailable(), Some("1")),
        (trailing(), Some("1")),
        (busy, None),
    ] {
        let cast = Cast::of(2).await;
        let (refusing, other) = (&cast.acting[0], &cast.acting[1]);
        refusing.turn(mood);
        let before = refusing.seen();
        eventually("it refuses a call", || async {
            assert_eq!(cast.call(READ).await.unwrap(), 1);
            refusing.seen() > before
        })
        .await;
        assert_eq!(refusing.heard(), [None, None], "the first attempt");
        let heard = other.heard();
        let expected = [Some("1"), charged];
        assert_eq!(heard.each_ref().map(Option::as_deref), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_of_one_caller_costs_others_neither_retries_nor_addresses() {
    let cast = Cast::of(2).await;
    let soon = Duration::from_millis(1);
    cast.turn(&Mood::Refusing(fault::share_full("caller", "calls", soon)));
    let before = cast.seen();
    let (_, failed) = cast.load(READ, 200, 8).await;
    assert_eq!((failed, cast.seen() - before), (200, 200));
    assert_eq!(cast.value("rpc_client_retries_total", ""), 0);
    assert_eq!((cast.ejected(), cast.steps("closed", "open")), (0, 0));
}
