//! Auth is away for most of a leaf's life, and then for longer: what goes on, what refuses and
//! says why, and that all of it comes back by itself.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::{path::Path, time::Duration};
use tars::rest::{Rest, RestError};
use tars_tests::{
    eventually,
    fleet::{Fleet, Source, services},
    reason, refusal,
};
use tokio::time::Instant;

/// Seconds that a leaf lives here.
const LIFE: u64 = 24;

async fn change(rest: &Rest) -> Result<Value, RestError> {
    let reload = json!({ "hyperparameters": { "gamma": 0.97 } });
    let path = "/api/v1/orchestration/agents/policy/reload";
    rest.post(path, reload).await
}

async fn read(rest: &Rest) -> Result<Value, RestError> {
    rest.get("/api/v1/orchestration/agents/state").await
}

/// Rotates the roots, so that every leaf is renewed at once and what follows begins with all of
/// their lives ahead. Returns when the first of them ends.
async fn fresh(fleet: &Fleet, rest: &Rest) -> u64 {
    fleet.rotate_roots(rest).await;
    let mut first = u64::MAX;
    for name in joined(fleet) {
        let end = fleet.certificate(&name).await["not_after"].as_u64();
        first = first.min(end.unwrap());
    }
    assert!(first > now() + LIFE / 2, "renewed just now");
    first
}

/// The processes that follow Auth.
fn joined(fleet: &Fleet) -> Vec<String> {
    let services = services().filter(|s| *s != "auth");
    services.flat_map(|s| fleet.processes_of(s)).collect()
}

fn now() -> u64 {
    tars_runtime::clock::Clock::system().now_s()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_auth_reads_go_on_until_leaves_expire_and_all_returns_with_it() {
    let life = LIFE.to_string();
    let env = [
        ("TARS__CERTIFICATES__LEAF_LIFE_SECONDS", life.as_str()),
        ("TARS__CONNECTIONS__MAX_AGE_GRACE_SECONDS", "4"),
    ];
    let binary = Path::new(env!("CARGO_BIN_EXE_tars"));
    let mut fleet = Fleet::start(binary, Source::Join, &env).await;
    let rest = fleet.admin().await;
    change(&rest).await.unwrap();
    let run = json!({ "steps": "1000000", "seed": "1" });
    let run = rest
        .post("/api/v1/orchestration/agents/policy/train", run)
        .await
        .unwrap();
    let run = run["run"]["run_id"].as_str().unwrap().to_owned();

    // Away until nine tenths of the leaf's life are over.
    let end = fresh(&fleet, &rest).await;
    fleet.kill("auth");
    let gone = Instant::now();
    let back_at = end - LIFE / 10;
    let mut stale_since = None;
    let mut after = 0;
    while now() < back_at {
        read(&rest).await.expect("reading needs no Auth");
        // A stream that is opened now goes on from where the last one was.
        let path = format!("/api/v1/orchestration/training/{run}/events?after_sequence={after}");
        let followed = rest
            .follow(&path, |item| {
                let sequence: u64 = item["sequence"].as_str().unwrap().parse().unwrap();
                assert_eq!(sequence, after + 1, "none lost, none twice");
                after = sequence;
                false
            })
            .await;
        // The connection's certificates end in time; the stream goes on with the next one.
        if let Err(ended) = followed {
            assert!(
                ended.to_string().contains("resume after the last"),
                "{ended}"
            );
        }
        if let Err(refused) = change(&rest).await {
            let (status, body) = refusal::<Value>(Err(refused));
            assert_eq!((status, reason(&body).as_str()), (503, "STALE_CREDENTIALS"));
            stale_since.get_or_insert(gone.elapsed());
        } else {
            assert!(stale_since.is_none(), "stale, and then not, without Auth");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(after > 5, "the stream went on");
    // The view was at most a heartbeat old when Auth went.
    let stale = stale_since.expect("changes were refused in the end");
    assert!(stale > Duration::from_secs(7), "{stale:?}");
    let mine = fleet.certificate("orchestration").await;
    assert!(
        mine["failures"].as_u64().unwrap() > 0,
        "renewal was tried: {mine}"
    );
    assert!(mine["last_error"].is_string());
    assert!(
        fleet.is_ready("orchestration").await,
        "the loss of Auth is no reason to be unready"
    );
    fleet.spawn("auth");
    eventually("changes are taken again", || async {
        change(&rest).await.is_ok()
    })
    .await;
    // On a slow machine Auth comes up too late for some: those come back by their rejoin token.
    for name in &joined(&fleet) {
        eventually(&format!("{name} is renewed"), || async {
            let mine = fleet.certificate(name).await;
            mine["not_after"].as_u64().unwrap() > end && mine["failures"] == 0
        })
        .await;
    }

    // Away for longer than the leaf lives.
    let end = fresh(&fleet, &rest).await;
    fleet.kill("auth");
    eventually("readiness says that the certificate is over", || async {
        now() > end && !fleet.is_ready("orchestration").await
    })
    .await;
    eventually("calls are refused, and say why", || async {
        let (status, body) = match read(&rest).await {
            Err(refused) => refusal::<Value>(Err(refused)),
            Ok(_) => return false,
        };
        let message = body["message"].as_str().unwrap().to_owned();
        status == 503 && message.contains("expired")
    })
    .await;
    fleet.spawn("auth");
    eventually("all of it comes back by itself", || async {
        read(&rest).await.is_ok() && change(&rest).await.is_ok()
    })
    .await;
    for name in &joined(&fleet) {
        eventually(&format!("{name} is ready"), || async {
            fleet.readiness(name).await.is_some()
        })
        .await;
        let mine = fleet.certificate(name).await;
        assert!(mine["not_after"].as_u64().unwrap() > end, "{mine}");
    }
    // Ready is who has the certificate; its record reaches the list a moment later.
    let admin = fleet.admin().await;
    eventually("each came back by its rejoin token", || async {
        let path = "/admin/audit/logs?event_type=certificate.issued";
        let listed = admin.get(path).await.unwrap();
        let events = listed["events"].as_array().unwrap().clone();
        let rejoined = events.iter().filter(|e| e["details"]["rejoin"] == "true");
        rejoined.count() >= joined(&fleet).len()
    })
    .await;
}
