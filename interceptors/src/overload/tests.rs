use super::*;
use crate::fixtures::{ME, by_peer};
use futures_util::future::join_all;
use tokio::time::{advance, pause};
use tonic_types::StatusExt;

const SOLVE: &str = "/tars.orchestration.v1.GameService/FindEquilibria";
const LOGOUT: &str = "/tars.auth.v1.AuthService/Logout";
const REVOKE: &str = "/tars.auth.v1.ApiKeyService/RevokeApiKey";
const WATCH: &str = "/tars.auth.v1.CredentialService/WatchCredentials";
const HEALTH: &str = "/grpc.health.v1.Health/Check";
const FLOOR: u32 = 4;
/// The calls in flight that one caller has alone, of 100: 24 that are not counted as anybody's, and three quarters
/// of what is left.
const ALONE: usize = 24 + 57;

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

/// A call that was let in, until it is dropped.
struct Held<'a> {
    overload: &'a Overload,
    call: Arc<Call>,
}

impl Held<'_> {
    fn answered(&self, headers: &HeaderMap) {
        self.overload
            .answered(&self.call, headers, key_of(&self.call));
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.overload.leave(&self.call);
    }
}

fn key_of(call: &Call) -> u64 {
    call.holder().map_or(0, |holder| holder.key())
}

fn enter(overload: &Overload, call: Arc<Call>) -> Result<Held<'_>, Status> {
    overload.enter(&call)?;
    Ok(Held { overload, call })
}

/// As many calls as are let in.
fn all(overload: &Overload, call: impl Fn() -> Arc<Call>) -> Vec<Held<'_>> {
    let held = std::iter::from_fn(|| enter(overload, call()).ok());
    held.take(1000).collect()
}

/// A call by a caller who is known.
fn by_user(overload: &Overload, user: &str) -> Arc<Call> {
    let call = by_client(ME);
    call.set_holder(Holders::new(overload.hasher().clone()).get(user));
    call
}

/// The same, counted in the caller's part.
fn enter_as<'a>(overload: &'a Overload, user: &str) -> Result<Held<'a>, Status> {
    let held = enter(overload, by_user(overload, user))?;
    overload.share(&held.call)?;
    Ok(held)
}

/// As many calls of a caller as are let in.
fn all_of<'a>(overload: &'a Overload, user: &str) -> Vec<Held<'a>> {
    std::iter::from_fn(|| enter_as(overload, user).ok()).collect()
}

/// Calls that arrive at once and are answered after `took`.
async fn answered(overload: &Overload, count: usize, took: Duration, headers: &HeaderMap) {
    let held: Vec<_> = (0..count)
        .filter_map(|_| enter(overload, by_client(ME)).ok())
        .collect();
    advance(took).await;
    for entered in held {
        entered.answered(headers);
    }
}

/// Whether `took` is twice as long as is usual for the calls of [`ME`] whose caller is unknown.
fn is_twice_as_slow(overload: &Overload, took: Duration) -> bool {
    let mut current = overload.0.window.lock();
    current.learning.close(&overload.0.meters, WINDOW, false);
    let method = by_client(ME).method.index;
    overload.0.meters.of(method, 0).record(took);
    let slowness = current.learning.close(&overload.0.meters, WINDOW, false);
    (1.9..2.1).contains(&slowness.unwrap())
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
    let held = all(&overload, || by_client(ME));
    assert_eq!((held.len(), in_flight(&overload)), (100, 100));
    drop(held);
    assert_eq!(in_flight(&overload), 0, "what was shed is not counted");
}

#[tokio::test]
async fn a_limit_falls_while_calls_are_slow_and_rises_again() {
    pause();
    let (overload, _) = overload();
    overloaded(&overload).await;
    assert_eq!(all(&overload, || by_client(ME)).len(), FLOOR as usize);
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
    let _held = all(&overload, || by_client(ME));
    let status = overload.enter(&by_client(ME)).unwrap_err();
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
        "overload_shed_total{tier=\"entry\",full=\"all\"} ".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} in {text}");
    }
}

#[tokio::test]
async fn what_is_vital_is_never_shed_and_hops_of_calls_that_were_let_in_are_shed_last() {
    pause();
    let (overload, _) = overload();
    overloaded(&overload).await;
    let _held = all(&overload, || by_client(ME));
    assert!(overload.enter(&by_client(SOLVE)).is_err());
    let by_gateway = by_peer(ME, PeerClass::Gateway, "/gateway");
    assert!(overload.enter(&by_gateway).is_err(), "it carries new calls");
    let hops = all(&overload, || by_service(ME));
    assert_eq!(hops.len(), (FLOOR / 2) as usize);
    for vital in [LOGOUT, REVOKE, HEALTH] {
        let let_in = all(&overload, || by_client(vital));
        assert_eq!(let_in.len(), 1000, "{vital}");
    }
    let own = || by_peer(WATCH, PeerClass::Gateway, "/gateway");
    assert_eq!(all(&overload, own).len(), 1000, "its credentials");
}

#[tokio::test]
async fn strangers_are_bounded_by_places_and_are_no_load() {
    let (overload, _) = overload();
    let held = all(&overload, || by_peer(ME, PeerClass::Joiner, "/join"));
    assert_eq!((held.len(), in_flight(&overload)), (1000, 0));
}

#[tokio::test]
async fn work_with_a_queue_of_its_own_is_neither_counted_nor_measured() {
    let (overload, _) = overload();
    let solving = all(&overload, || by_client(SOLVE));
    assert_eq!(solving.len(), 1000);
    assert!(solving.iter().all(|held| !held.call.flight().is_counted()));
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
    assert!(is_twice_as_slow(&overload, slow));
}

#[tokio::test]
async fn time_that_a_client_takes_for_its_request_does_not_count() {
    pause();
    let (overload, _) = overload();
    for _ in 0..100 {
        Stream::scope(async {
            let entered = enter(&overload, by_client(ME)).unwrap();
            Stream::request_awaited();
            overload.polled(&entered.call);
            advance(Duration::from_secs(5)).await;
            Stream::request_arrived().unwrap();
            advance(Duration::from_millis(10)).await;
            entered.answered(&HeaderMap::new());
        })
        .await;
    }
    assert!(is_twice_as_slow(&overload, Duration::from_millis(20)));
}

#[tokio::test]
async fn a_call_counts_only_while_its_client_has_nothing_to_do() {
    let (overload, _) = overload();
    Stream::scope(async {
        let held = enter_as(&overload, "ada").unwrap();
        overload.polled(&held.call);
        assert_eq!(in_flight(&overload), 1, "its request is there");
        for _ in 0..3 {
            Stream::request_awaited();
            overload.polled(&held.call);
            overload.polled(&held.call);
            assert_eq!(in_flight(&overload), 0, "it is awaited");
            Stream::request_arrived().unwrap();
            overload.polled(&held.call);
            assert_eq!(in_flight(&overload), 1, "it has come");
        }
        held.answered(&HeaderMap::new());
        assert_eq!(in_flight(&overload), 0, "its answer may be read slowly");
        drop(held);
        assert_eq!(in_flight(&overload), 0);
    })
    .await;
}

#[tokio::test]
async fn requests_that_were_held_back_are_let_in_no_further_than_others() {
    let (overload, metrics) = overload();
    let all_wait = tokio::sync::Barrier::new(150);
    let one = || {
        Stream::scope(async {
            let held = enter_as(&overload, "greedy").unwrap();
            Stream::request_awaited();
            overload.polled(&held.call);
            all_wait.wait().await;
            let refused = Stream::request_arrived().err();
            assert_eq!(refused.is_some(), held.call.refusal().is_some());
            (held, refused)
        })
    };
    let all = join_all((0..150).map(|_| one())).await;
    let refused: Vec<_> = all
        .iter()
        .filter_map(|(_, refused)| refused.as_ref())
        .collect();
    assert_eq!(refused.len(), 150 - ALONE);
    for refused in refused {
        let status = refused.downcast_ref::<Status>().unwrap();
        assert_eq!(status.code(), Code::ResourceExhausted, "of the caller");
        assert_eq!(fault::reason(status).as_deref(), Some("SHARE_FULL"));
        assert!(status.metadata().contains_key(fault::PUSHBACK));
    }
    assert!(
        all.iter()
            .all(|(held, why)| held.call.flight().is_shed() == why.is_some())
    );
    let (_, text) = metrics.render("").unwrap();
    let line = "overload_shed_total{tier=\"entry\",full=\"caller\"} 69";
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn no_caller_keeps_others_out() {
    let (overload, _) = overload();
    let first = all_of(&overload, "first");
    assert_eq!(first.len(), ALONE);
    let second = all_of(&overload, "second");
    assert!(
        second.len() >= 12,
        "{}: three quarters of what is left",
        second.len()
    );
    assert!(enter_as(&overload, "first").is_err());
    for newcomer in ["third", "fourth", "fifth"] {
        assert!(enter_as(&overload, newcomer).is_ok(), "{newcomer}");
    }
    drop((first, second));
    assert_eq!(in_flight(&overload), 0);
    assert_eq!(
        all_of(&overload, "first").len(),
        ALONE,
        "all was given back"
    );
    let service = |user: &str| {
        let call = by_service(ME);
        call.set_holder(Holders::new(overload.hasher().clone()).get(user));
        call
    };
    let first = all_of(&overload, "first");
    let hop = enter(&overload, service("first")).unwrap();
    assert!(overload.share(&hop.call).is_ok(), "what was let in goes on");
    drop(first);
}

/// A caller, and how long each of its calls takes.
type Load<'a> = (&'a str, Duration);

fn took(user: &str, millis: u64) -> Load<'_> {
    (user, Duration::from_millis(millis))
}

/// Callers none of whom spoils the lane of another.
fn callers<const N: usize>(overload: &Overload) -> [String; N] {
    let lane = |user: &str| {
        let key = key_of(&by_user(overload, user));
        std::ptr::from_ref(overload.0.meters.of(0, key))
    };
    let mut lanes = std::collections::HashSet::new();
    let mut names = (0..).map(|n| format!("caller-{n}"));
    std::array::from_fn(|_| names.find(|name| lanes.insert(lane(name))).unwrap())
}

/// Windows in which each caller has twenty calls at once, or as many as are let in.
async fn windows(overload: &Overload, count: usize, callers: &[Load<'_>]) {
    for _ in 0..count {
        let calls = callers.iter().flat_map(|load| [load; 20]);
        let mut held: Vec<_> = calls
            .filter_map(|(user, took)| Some((enter_as(overload, user).ok()?, *took)))
            .collect();
        held.sort_by_key(|(_, took)| *took);
        let began = Instant::now();
        for (held, took) in held {
            advance((began + took).saturating_duration_since(Instant::now())).await;
            held.answered(&HeaderMap::new());
        }
        advance(WINDOW).await;
    }
}

#[tokio::test]
async fn a_caller_whose_calls_cost_much_slows_down_nobody_else() {
    pause();
    for others in [1, 2] {
        let (overload, _) = overload();
        let [costly, users @ ..] = &callers::<3>(&overload);
        let load = |of_costly, of_others| {
            let others = users[..others].iter().map(|user| took(user, of_others));
            others.chain([took(costly, of_costly)]).collect::<Vec<_>>()
        };
        windows(&overload, 20, &load(10, 10)).await;
        windows(&overload, 100, &load(500, 10)).await;
        assert_eq!(limit(&overload), 100, "{others}");
        windows(&overload, 20, &load(500, 500)).await;
        assert!(limit(&overload) < 100, "this is overload: {others}");
    }
}

#[tokio::test]
async fn neither_of_two_callers_starves_the_other_however_slow_one_is() {
    pause();
    for slow_is_first in [true, false] {
        let (overload, _) = overload();
        let [slow, fast] = &callers(&overload);
        windows(&overload, 20, &[took(slow, 10), took(fast, 10)]).await;
        windows(&overload, 100, &[took(slow, 500), took(fast, 10)]).await;
        let (first, second) = match slow_is_first {
            true => (slow, fast),
            false => (fast, slow),
        };
        let all = all_of(&overload, first);
        assert_eq!(all.len(), ALONE, "{slow_is_first}");
        let others = all_of(&overload, second);
        assert!(others.len() >= 12, "{slow_is_first}: {}", others.len());
    }
}

#[tokio::test]
async fn a_caller_who_lowers_the_limit_alone_leaves_room_for_one_who_comes() {
    pause();
    let (overload, _) = overload();
    let [alone, other] = &callers(&overload);
    windows(&overload, 20, &[took(alone, 10), took(other, 10)]).await;
    windows(&overload, 300, &[took(alone, 500)]).await;
    assert_eq!(limit(&overload), FLOOR, "nobody else says otherwise");
    let held = all_of(&overload, alone);
    assert!(held.len() < FLOOR as usize, "{}", held.len());
    assert!(enter_as(&overload, other).is_ok());
    drop(held);
    // Once another one calls, it is seen that the process is as fast as usual.
    windows(&overload, 1000, &[took(alone, 500), took(other, 10)]).await;
    assert!(limit(&overload) > FLOOR, "{}", limit(&overload));
}
