//! Probes: calls that show whether a replica works again.

use super::{
    cast::{Cast, Mood, OTHER_READ, READ, STREAM, call, send, trailing, unavailable},
    *,
};
use futures_util::{StreamExt, future::join_all, stream};
use std::time::Duration;

impl Cast {
    /// How often a probe has failed.
    fn failed_probes(&self) -> u64 {
        self.steps("half_open", "open")
    }

    /// Reads until one of them is answered by the replica that was ejected.
    async fn until_back(&self, at: usize) {
        eventually("it is back", || async {
            self.call(READ).await.unwrap() == at && self.ejected() == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_probe_of_a_replica_that_is_still_silent() {
    for silent in [Mood::Silent, Mood::Begun] {
        nobody_waits_for_a_silent_probe(silent).await;
    }
}

async fn nobody_waits_for_a_silent_probe(silent: Mood) {
    let cast = Cast::of(3).await;
    cast.acting[1].turn(silent);
    eventually("it is ejected", || async {
        let limit = Some(Duration::from_secs(1));
        let calls = stream::iter(0..64).map(|_| call(cast.channel.clone(), READ, limit));
        calls.buffer_unordered(64).count().await;
        cast.ejected() == 1
    })
    .await;
    eventually("two probes fail", || async {
        // Without a deadline, the probe itself would never end.
        assert_ne!(cast.call(READ).await.unwrap(), 1);
        cast.failed_probes() >= 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_always_takes_long_readmits_a_replica() {
    let cast = Cast::of(2).await;
    cast.acting[1].turn(unavailable());
    cast.until_ejected(READ).await;
    // Longer than a probe may take of whose method nothing is known.
    cast.turn(&Mood::Late(Duration::from_millis(1100)));
    eventually("it is readmitted", || async {
        let long = join_all((0..4).map(|_| cast.call(OTHER_READ))).await;
        assert!(long.iter().all(Result::is_ok), "{long:?}");
        cast.ejected() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_that_cannot_be_sent_again_is_waited_for() {
    let cast = Cast::of(3).await;
    cast.acting[1].turn(unavailable());
    cast.until_ejected(READ).await;
    // Longer than any probe of this method may take, and too long a request to be retained.
    cast.acting[1].turn(Mood::Late(Duration::from_secs(2)));
    let failed = cast.failed_probes();
    let request = || tonic::Request::new(Bytes::from(vec![7; 300 << 10]));
    eventually("it answers a probe", || async {
        send(cast.channel.clone(), READ, request()).await.unwrap() == 1
    })
    .await;
    assert_eq!((cast.ejected(), cast.failed_probes()), (0, failed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_begins_and_fails_does_not_readmit_a_replica() {
    let cast = Cast::of(3).await;
    cast.acting[1].turn(trailing());
    cast.until_ejected(STREAM).await;
    eventually("two probes fail", || async {
        cast.call(STREAM).await.ok();
        cast.failed_probes() >= 2
    })
    .await;
    assert_eq!(cast.steps("half_open", "closed"), 0);
    cast.acting[1].turn(Mood::Well);
    cast.until_back(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_begins_and_has_nothing_to_say_readmits_a_replica() {
    let cast = Cast::of(3).await;
    cast.acting[1].turn(trailing());
    cast.until_ejected(STREAM).await;
    cast.turn(&Mood::Begun);
    let (failed, open) = (cast.failed_probes(), Mutex::new(Vec::new()));
    eventually("it has a stream", || async {
        let stream = cast.open().await;
        open.lock().push(stream);
        cast.acting[1].in_flight() > 0
    })
    .await;
    cast.turn(&Mood::Well);
    cast.until_back(1).await;
    assert_eq!(cast.failed_probes(), failed);
}
