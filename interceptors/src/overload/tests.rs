use super::*;
use crate::fixtures::{ME, by_peer};
use tokio::time::{advance, pause};
use tonic_types::StatusExt;

const SOLVE: &str = "/tars.orchestration.v1.GameService/FindEquilibria";
const LOGOUT: &str = "/tars.auth.v1.AuthService/Logout";
const REVOKE: &str = "/tars.auth.v1.ApiKeyService/RevokeApiKey";
const WATCH: &str = "/tars.auth.v1.CredentialService/WatchCredentials";
const HEALTH: &str = "/grpc.health.v1.Health/Check";
const FLOOR: u32 = 4;

fn overload() -> (Overload, Metrics) {
    let metrics = Metrics::default();
    let settings = config::Overload {
        floor: FLOOR,
        ceiling: 100,
    };
    (Overload::new(&settings, &metrics), metrics)
}

fn by_client(method: &str) -> Arc<Call> {
    by_peer(method, PeerClass::Client, "/client/a")
}

fn by_service(method: &str) -> Arc<Call> {
    by_peer(method, PeerClass::Hypersync, "/hypersync")
}

fn limit(overload: &Overload) -> u32 {
    overload.0.limit.load(Ordering::Relaxed)
}

fn in_flight(overload: &Overload) -> u32 {
    overload.in_flight()
}

/// As many calls as are let in.
fn all(overload: &Overload, call: &Call) -> Vec<Option<InFlight>> {
    let held = std::iter::from_fn(|| overload.enter(call).ok());
    held.take(1000).collect()
}

/// Calls that arrive at once and are answered after `took`.
async fn answered(overload: &Overload, count: usize, took: Duration, headers: &HeaderMap) {
    let call = by_client(ME);
    let held: Vec<_> = (0..count)
        .filter_map(|_| overload.enter(&call).ok().flatten())
        .collect();
    advance(took).await;
    for entered in held {
        entered.answered(&call, headers);
    }
}

/// Whether `took` is twice as long as is usual.
fn is_twice_as_slow(overload: &Overload, call: &Call, took: Duration) -> bool {
    let meter = std::slice::from_ref(&overload.0.meters[call.method.index]);
    meters::close(meter, WINDOW, false);
    meter[0].record(took);
    let slowness = meters::close(meter, WINDOW, false).unwrap();
    (1.9..2.1).contains(&slowness)
}

/// Lowers the limit to its floor.
async fn overloaded(overload: &Overload) {
    let none = HeaderMap::new();
    for took in [10; 5].into_iter().chain([100; 600]) {
        answered(overload, 64, Duration::from_millis(took), &none).await;
        advance(WINDOW).await;
    }
    assert_eq!(limit(overload), FLOOR);
}

#[tokio::test]
async fn a_process_with_nothing_measured_sheds_at_its_ceiling() {
    let (overload, _) = overload();
    let held = all(&overload, &by_client(ME));
    assert_eq!((held.len(), in_flight(&overload)), (100, 100));
    drop(held);
    assert_eq!(in_flight(&overload), 0, "what was shed is not counted");
}

#[tokio::test]
async fn a_limit_falls_while_calls_are_slow_and_rises_again() {
    pause();
    let (overload, _) = overload();
    overloaded(&overload).await;
    assert_eq!(all(&overload, &by_client(ME)).len(), FLOOR as usize);
    for _ in 0..3000 {
        let most = limit(&overload) as usize;
        answered(
            &overload,
            most.max(32),
            Duration::from_millis(10),
            &HeaderMap::new(),
        )
        .await;
        advance(WINDOW).await;
    }
    assert!(limit(&overload) > FLOOR, "{}", limit(&overload));
}

#[tokio::test]
async fn a_call_that_is_shed_is_told_when_to_come_back() {
    pause();
    let (overload, metrics) = overload();
    overloaded(&overload).await;
    let call = by_client(ME);
    let _held = all(&overload, &call);
    let status = overload.enter(&call).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(fault::reason(&status).as_deref(), Some("OVERLOADED"));
    let delay = status
        .get_details_retry_info()
        .unwrap()
        .retry_delay
        .unwrap();
    assert!((COME_BACK..COME_BACK * 2).contains(&delay), "{delay:?}");
    let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap();
    assert_eq!(pushback.to_str().unwrap(), delay.as_millis().to_string());
    let (_, text) = metrics.render("").unwrap();
    for line in [
        format!("overload_limit {FLOOR}"),
        format!("overload_in_flight {FLOOR}"),
        "overload_shed_total{tier=\"entry\"} ".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} in {text}");
    }
}

#[tokio::test]
async fn what_is_vital_is_never_shed_and_hops_of_calls_that_were_let_in_are_shed_last() {
    pause();
    let (overload, _) = overload();
    overloaded(&overload).await;
    let _held = all(&overload, &by_client(ME));
    assert!(overload.enter(&by_client(SOLVE)).is_err());
    let by_gateway = by_peer(ME, PeerClass::Gateway, "/gateway");
    assert!(overload.enter(&by_gateway).is_err(), "it carries new calls");
    let hops = all(&overload, &by_service(ME));
    assert_eq!(hops.len(), (FLOOR / 2) as usize);
    for vital in [LOGOUT, REVOKE, HEALTH] {
        let let_in = all(&overload, &by_client(vital));
        assert_eq!(let_in.len(), 1000, "{vital}");
    }
    let own = by_peer(WATCH, PeerClass::Gateway, "/gateway");
    assert_eq!(all(&overload, &own).len(), 1000, "its credentials");
}

#[tokio::test]
async fn strangers_are_bounded_by_places_and_are_no_load() {
    let (overload, _) = overload();
    let stranger = by_peer(ME, PeerClass::Joiner, "/join");
    let held = all(&overload, &stranger);
    assert_eq!((held.len(), in_flight(&overload)), (1000, 0));
}

#[tokio::test]
async fn work_with_a_queue_of_its_own_is_neither_counted_nor_measured() {
    let (overload, _) = overload();
    let solving = all(&overload, &by_client(SOLVE));
    assert_eq!(solving.len(), 1000);
    assert!(solving.iter().all(Option::is_none));
    assert_eq!(in_flight(&overload), 0);
}

#[tokio::test]
async fn refusals_and_short_deadlines_of_clients_do_not_move_the_limit() {
    pause();
    let (overload, _) = overload();
    let (none, mut refused) = (HeaderMap::new(), HeaderMap::new());
    refused.insert(
        "grpc-status",
        http::HeaderValue::from(Code::InvalidArgument as i32),
    );
    let mut late = HeaderMap::new();
    late.insert(
        "grpc-status",
        http::HeaderValue::from(Code::DeadlineExceeded as i32),
    );
    for _ in 0..20 {
        answered(&overload, 64, Duration::from_millis(10), &none).await;
        advance(WINDOW).await;
        answered(&overload, 64, Duration::from_micros(10), &refused).await;
        answered(&overload, 64, Duration::from_millis(1), &late).await;
        advance(WINDOW).await;
    }
    assert_eq!(limit(&overload), 100);
    let slow = Duration::from_millis(20);
    assert!(is_twice_as_slow(&overload, &by_client(ME), slow));
}

#[tokio::test]
async fn time_that_a_client_takes_for_its_request_does_not_count() {
    pause();
    let (overload, _) = overload();
    let call = by_client(ME);
    for _ in 0..100 {
        Stream::scope(async {
            let entered = overload.enter(&call).unwrap().unwrap();
            Stream::request_awaited();
            advance(Duration::from_secs(5)).await;
            Stream::request_arrived();
            advance(Duration::from_millis(10)).await;
            entered.answered(&call, &HeaderMap::new());
        })
        .await;
    }
    assert!(is_twice_as_slow(
        &overload,
        &call,
        Duration::from_millis(20)
    ));
}
