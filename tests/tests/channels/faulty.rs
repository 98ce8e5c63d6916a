//! Calls over replicas some of which are dead, slow, flapping, silent, or refuse.

use super::{
    cast::{
        Acting, CHANGE, Cast, Mood, QUEUED, READ, STREAM, call, pushed_back, trailing, unavailable,
    },
    *,
};
use futures_util::future::join_all;
use std::time::Duration;
use tars_proto::unavailable::Unavailable;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_refuses_quickly_draws_no_calls() {
    for refusing in [unavailable(), trailing()] {
        let cast = Cast::of(3).await;
        let before = cast.acting[0].seen();
        cast.acting[0].turn(refusing);
        let (counts, failed) = cast.load(READ, 500, 8).await;
        assert_eq!((counts[0], failed), (0, 0), "{counts:?}");
        let drawn = cast.acting[0].seen() - before;
        assert!(drawn <= 20, "{drawn} calls went to it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_ejection_no_call_fails_even_one_that_may_not_be_repeated() {
    for refusing in [unavailable(), trailing()] {
        no_call_fails_after_the_ejection(refusing).await;
    }
}

async fn no_call_fails_after_the_ejection(refusing: Mood) {
    let cast = Cast::of(3).await;
    cast.acting[1].turn(refusing);
    let failed = cast.until_ejected(CHANGE).await;
    assert!(failed >= 5, "{failed}");
    let (counts, failed) = cast.load(CHANGE, 300, 8).await;
    assert_eq!((counts[1], failed), (0, 0), "{counts:?}");
    // A call that may be repeated finds out that the replica works again.
    cast.acting[1].turn(Mood::Well);
    eventually("it is back", || async {
        cast.call(READ).await.unwrap() == 1
    })
    .await;
    eventually("it gets all calls", || async {
        cast.call(CHANGE).await.unwrap() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_available_further_on_ejects_nobody_who_says_so() {
    let cast = Cast::of(2).await;
    let further = fault::unavailable(
        Unavailable::Unreachable,
        "orchestration cannot be reached",
        Duration::from_secs(1),
    );
    for refusing in [Mood::Refusing(further.clone()), Mood::Trailing(further)] {
        cast.turn(&refusing);
        let (_, failed) = cast.load(CHANGE, 40, 4).await;
        assert_eq!((failed, cast.ejected()), (40, 0));
    }
    cast.turn(&unavailable());
    cast.until_ejected(CHANGE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn giving_up_what_waits_in_a_queue_ejects_nobody() {
    let cast = Cast::of(2).await;
    let (_, failed) = cast.load(QUEUED, 100, 8).await;
    assert_eq!(failed, 0);
    cast.turn(&Mood::Silent);
    let limit = Duration::from_millis(1100);
    for _ in 0..2 {
        let calls = (0..16).map(|_| timeout(limit, cast.call(QUEUED)));
        let given_up = join_all(calls).await;
        assert!(given_up.iter().all(Result::is_err), "{given_up:?}");
        assert_eq!(cast.ejected(), 0);
    }
    eventually("what is answered at once otherwise does", || async {
        let calls = (0..16).map(|_| timeout(limit, cast.call(READ)));
        join_all(calls).await;
        cast.ejected() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_replica_gets_less_than_one_call_in_a_hundred() {
    let cast = Cast::of(3).await;
    let before = cast.acting[2].seen();
    // Slower than the others by far, also where the machine is busy.
    cast.acting[2].turn(Mood::Late(Duration::from_secs(2)));
    let (counts, failed) = cast.load(READ, 1000, 4).await;
    let drawn = cast.acting[2].seen() - before;
    assert!(drawn < 10 && failed == 0, "{drawn} of {counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_fails_while_one_replica_is_dead_one_slow_and_one_flaps() {
    let mut cast = Cast::of(4).await;
    cast.replicas.close(0).await;
    cast.acting[1].turn(Mood::Late(Duration::from_millis(20)));
    let flapping = cast.acting[2].clone();
    let flaps = AbortOnDropHandle::new(tokio::spawn(async move {
        let mut rhythm = tokio::time::interval(Duration::from_millis(50));
        for at in 0.. {
            rhythm.tick().await;
            flapping.turn(if at % 2 == 0 {
                unavailable()
            } else {
                Mood::Well
            });
        }
    }));
    let (counts, failed) = cast.load(READ, 1000, 8).await;
    assert_eq!((failed, counts[0]), (0, 0), "{counts:?}");
    drop(flaps);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_call_that_may_be_repeated_is_sent_again() {
    for (refusing, replicas) in [
        (unavailable(), 2),
        (unavailable(), 1),
        (trailing(), 2),
        (trailing(), 1),
    ] {
        let cast = Cast::of(replicas).await;
        cast.turn(&refusing);
        for (method, times) in [(CHANGE, 1), (READ, 3)] {
            let before = cast.seen();
            let refused = cast.call(method).await.unwrap_err();
            assert_eq!(
                (refused.code(), refused.message()),
                (Code::Unavailable, "not now")
            );
            assert_eq!(cast.seen() - before, times, "{method} of {replicas}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_again_after_a_message_or_the_headers_of_a_stream() {
    let late = Mood::Midway(Status::unavailable("not now"));
    for (method, mood) in [(READ, late.clone()), (STREAM, late), (STREAM, trailing())] {
        let cast = Cast::of(2).await;
        cast.turn(&mood);
        let before = cast.seen();
        let refused = cast.call(method).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        assert_eq!(cast.seen() - before, 1, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_end_before_a_message_eject_and_those_that_end_later_do_not() {
    let cast = Cast::of(3).await;
    cast.acting[1].turn(trailing());
    let failed = cast.until_ejected(STREAM).await;
    assert!(failed >= 5, "{failed}");
    cast.acting[1].turn(Mood::Well);
    eventually("it is back", || async {
        cast.call(STREAM).await.unwrap() == 1
    })
    .await;
    cast.acting[1].turn(Mood::Midway(Status::unavailable("not now")));
    let (_, failed) = cast.load(STREAM, 300, 8).await;
    assert!(failed > 20, "{failed}");
    assert_eq!(cast.ejected(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_lost_before_a_message_eject() {
    let cast = Cast::of(2).await;
    cast.turn(&Mood::Begun);
    let open = Mutex::new(Vec::new());
    eventually("it has five streams", || async {
        let stream = cast.open().await;
        open.lock().push(stream);
        cast.acting[1].in_flight() >= 5
    })
    .await;
    let reads = open.into_inner().into_iter().map(|mut stream| {
        let read = async move { stream.message().await.unwrap_err() };
        AbortOnDropHandle::new(tokio::spawn(read))
    });
    let reads: Vec<_> = reads.collect();
    assert_eq!(cast.ejected(), 0);
    let listener = cast.replicas.listener(1);
    revoke(&cast.replicas.root, &cast.revocations, listener);
    eventually("it is ejected", || async { cast.ejected() == 1 }).await;
    drop(reads);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_is_lost_before_its_message_is_asked_for_again() {
    let (answer, asked) = cut_during(READ, Mood::Begun).await;
    assert_eq!((answer.is_ok(), asked), (true, 2), "{answer:?}");
    let (answer, asked) = cut_during(CHANGE, Mood::Begun).await;
    assert_eq!((answer.is_err(), asked), (true, 1), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_says_about_sending_again_holds() {
    for replicas in [1, 2] {
        let cast = Cast::of(replicas).await;
        for (pushback, times) in [("0", 3), ("1", 3), ("-1", 1), ("later", 1), ("3600000", 1)] {
            let status = pushed_back(pushback);
            for mood in [Mood::Refusing(status.clone()), Mood::Trailing(status)] {
                cast.turn(&mood);
                let before = cast.seen();
                cast.call(READ).await.unwrap_err();
                assert_eq!(cast.seen() - before, times, "{pushback} of {replicas}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_codes_are_answers_and_are_not_sent_again() {
    let cast = Cast::of(2).await;
    for code in [
        Code::Internal,
        Code::Unknown,
        Code::Aborted,
        Code::DeadlineExceeded,
        Code::ResourceExhausted,
        Code::NotFound,
    ] {
        let status = Status::new(code, "no");
        for mood in [Mood::Refusing(status.clone()), Mood::Trailing(status)] {
            cast.turn(&mood);
            let before = cast.seen();
            assert_eq!(cast.call(READ).await.unwrap_err().code(), code);
            assert_eq!(cast.seen() - before, 1, "{code:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_stay_within_a_budget_when_every_replica_fails() {
    for refusing in [unavailable(), trailing()] {
        let cast = Cast::of(3).await;
        let before = cast.seen();
        cast.turn(&refusing);
        let (_, failed) = cast.load(READ, 500, 8).await;
        let sent = cast.seen() - before;
        assert_eq!(failed, 500);
        // A hundred that were saved, and one for five calls.
        assert!((600..=500 + 100 + 101).contains(&sent), "{sent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_does_not_hold_a_call_beyond_its_deadline() {
    let cast = Cast::of(1).await;
    cast.acting[0].turn(Mood::Silent);
    let timeout = Some(Duration::from_millis(100));
    let late = call(cast.channel.clone(), READ, timeout).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert_eq!(
        fault::reason(&late).as_deref(),
        Some(reason::DEADLINE_EXCEEDED)
    );
    eventually("its work is cancelled", || async {
        cast.acting[0].in_flight() == 0
    })
    .await;
}

/// Calls, and cuts the connection to the replica that has the request; the other one answers. Returns the
/// answer, and how many replicas had the request.
async fn cut_during(method: &'static str, mood: Mood) -> (Result<usize, Status>, usize) {
    let cast = Cast::of(2).await;
    let before: Vec<_> = cast.acting.iter().map(Acting::seen).collect();
    cast.turn(&mood);
    let sent = tokio::spawn(call(cast.channel.clone(), method, None));
    let holds = || cast.acting.iter().position(|acting| acting.in_flight() > 0);
    eventually("one has the request", || async { holds().is_some() }).await;
    let holder = holds().unwrap();
    cast.acting[1 - holder].turn(Mood::Well);
    let listener = cast.replicas.listener(holder);
    revoke(&cast.replicas.root, &cast.revocations, listener);
    let answer = sent.await.unwrap();
    let asked = cast.acting.iter().zip(before);
    let asked = asked.filter(|(acting, before)| acting.seen() > *before);
    (answer, asked.count())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_may_have_been_processed_is_sent_again_only_if_it_may_be_repeated() {
    let (answer, asked) = cut_during(CHANGE, Mood::Silent).await;
    let lost = answer.unwrap_err();
    assert_eq!((lost.code(), asked), (Code::Unavailable, 1), "{lost:?}");
    let (answer, asked) = cut_during(READ, Mood::Silent).await;
    assert_eq!((answer.is_ok(), asked), (true, 2), "{answer:?}");
}
