//! What users have used, over the whole mesh: counted once, shown to those who may see it, and refused before the
//! work starts where a quota does not allow it.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::{path::Path, time::Duration};
use tars::rest::{Rest, RestError};
use tars_interceptors::usage::{Allowance, QuotaRefusal, Usage};
use tars_runtime::{
    clock::Clock,
    config::Config,
    db::{Db, DbError, Migration},
    usage::{self, Amounts, Answer, Dimension, Month, Total},
};
use tars_tests::{PASSWORD, TestMesh, config, eventually, reason, refusal};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const AGENTS: &str = "/api/v1/orchestration/agents/state";
const TRAIN: &str = "/api/v1/orchestration/agents/policy/train";
const NASH: &str = "/api/v1/orchestration/nash";

fn quotas(calls: u64, training_steps: u64, solver_seconds: u64) -> Config {
    let mut config = config();
    config.quotas.calls = calls;
    config.quotas.training_steps = training_steps;
    config.quotas.solver_seconds = solver_seconds;
    config
}

/// One month of the caller.
async fn own(rest: &Rest) -> Value {
    rest.get("/auth/usage").await.unwrap()["months"][0].clone()
}

fn amount(usage: &Value, name: &str) -> u64 {
    usage[name].as_str().unwrap().parse().unwrap()
}

async fn calls(rest: &Rest) -> u64 {
    amount(&own(rest).await, "calls")
}

async fn counts(rest: &Rest, name: &str, expected: u64) {
    eventually(&format!("{name} are {expected}"), || async {
        amount(&own(rest).await, name) == expected
    })
    .await;
}

fn over<T: std::fmt::Debug>(answer: Result<T, RestError>) -> Value {
    let (status, body) = refusal(answer);
    assert_eq!((status, &*reason(&body)), (429, "QUOTA_EXCEEDED"), "{body}");
    let mut details = body["details"].as_array().unwrap().iter();
    let info = details.find(|d| d["reason"] == "QUOTA_EXCEEDED");
    info.unwrap()["metadata"].clone()
}

fn matching_pennies(options: Value) -> Value {
    json!({
        "players": [
            { "name": "row", "actions": ["heads", "tails"], "payoffs": [1, -1, -1, 1] },
            { "name": "column", "actions": ["heads", "tails"], "payoffs": [-1, 1, 1, -1] },
        ],
        "options": options,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_counted_once_where_it_enters_the_mesh() {
    let mesh = TestMesh::start().await;
    let (dev, other) = (
        mesh.user("dev", "developer").await,
        mesh.user("eve", "viewer").await,
    );
    for _ in 0..7 {
        dev.get(AGENTS).await.unwrap();
        dev.get("/auth/me").await.unwrap();
    }
    // AutoML asks Orchestration on behalf of the caller.
    let wrong = json!({ "agent_id": "policy", "agent_type": "ppo" });
    refusal(dev.post("/api/v1/optimize", wrong).await);
    refusal(dev.get("/admin/users").await);
    counts(&dev, "calls", 15).await;
    other.get(AGENTS).await.unwrap();
    counts(&other, "calls", 1).await;
    assert_eq!(
        calls(&dev).await,
        15,
        "neither refused ones nor those about usage"
    );
    // What was written is not counted again, and what was not is written at the end.
    dev.get(AGENTS).await.unwrap();
    let mesh = mesh.restart().await;
    let dev = mesh.login("dev").await;
    counts(&dev, "calls", 16).await;
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_limited_by_default_and_nobody_sees_what_others_use() {
    let mesh = TestMesh::start().await;
    let (admin, dev) = (mesh.admin().await, mesh.user("dev", "developer").await);
    dev.get(AGENTS).await.unwrap();
    counts(&dev, "calls", 1).await;
    let shown = dev.get("/auth/usage").await.unwrap();
    let limits: Vec<_> = shown["quota"].as_object().unwrap().keys().collect();
    assert_eq!(limits, ["resets_at"]);
    for path in [
        "/admin/usage",
        "/api/v1/admin/usage",
        "/admin/usage?user=admin",
    ] {
        let (status, body) = refusal(dev.get(path).await);
        assert_eq!((status, &*reason(&body)), (403, "PERMISSION_DENIED"));
    }
    let listed = admin.get("/admin/usage?user=dev").await.unwrap();
    assert_eq!(listed["usage"].as_array().unwrap().len(), 1);
    assert_eq!(listed["usage"][0]["username"], "dev");
    assert_eq!(listed["usage"][0]["closed"], false);
    eventually("the administrator's own is on another page", || async {
        let page = admin.get("/admin/usage?page_size=1").await.unwrap();
        assert_eq!(page["usage"].as_array().unwrap().len(), 1);
        !page["next_page_token"].as_str().unwrap().is_empty()
    })
    .await;
    for bad in [
        "/auth/usage?month=2026",
        "/auth/usage?month=2026-12&last_month=2026-11",
        "/auth/usage?month=2000-01&last_month=2026-11",
        "/admin/usage?last_month=2026-00",
        "/admin/usage?page_token=x",
    ] {
        assert_eq!(refusal(admin.get(bad).await).0, 400, "{bad}");
    }
    assert_eq!(refusal(admin.get("/admin/usage?user=nobody").await).0, 404);
    let months = "/auth/usage?month=2026-01&last_month=2026-03";
    let months = dev.get(months).await.unwrap();
    let months: Vec<_> = months["months"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (&m["month"], &m["calls"]))
        .collect();
    assert_eq!(months.len(), 3);
    assert!(months.iter().all(|(_, calls)| *calls == "0"));
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_over_the_quota_are_refused_and_signing_out_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("quotas.toml");
    write(&file, "[[override]]\nrole = \"developer\"\ncalls = 5");
    let mut settings = config();
    settings.quotas.file = Some(file);
    let mesh = TestMesh::alone(settings, Clock::system()).await;
    let admin = mesh.admin().await;
    let dev = mesh.user("dev", "developer").await;
    for _ in 0..5 {
        dev.get(AGENTS).await.unwrap();
    }
    let told = over(dev.get(AGENTS).await);
    assert_eq!(
        (&told["dimension"], &told["limit"]),
        (&json!("calls"), &json!("5"))
    );
    assert_eq!((&told["used"], &told["left"]), (&json!("5"), &json!("0")));
    let now = Month::at(Clock::system().now());
    assert_eq!(told["resets_at"], format!("{}-01T00:00:00Z", now.next()));
    // Other services learn of it.
    eventually("AutoML refuses", || async {
        dev.get("/api/v1/studies").await.is_err()
    })
    .await;
    over(dev.get("/api/v1/studies").await);
    let shown = dev.get("/auth/usage").await.unwrap();
    assert_eq!(shown["quota"]["calls"], "5");
    dev.post("/auth/logout", json!({})).await.unwrap();
    let audit = "/admin/audit/logs?event_type=usage.quota.exceeded&caller=user:dev";
    eventually("it is recorded", || async {
        let listed = admin.get(audit).await.unwrap();
        let mut events = listed["events"].as_array().unwrap().iter();
        events.any(|e| e["details"]["reason"] == "QUOTA_EXCEEDED")
    })
    .await;
    let metrics = mesh.metrics().await.concat();
    assert!(
        metrics.contains("usage_quota_refusals_total{dimension=\"calls\"}"),
        "{metrics}"
    );
    assert!(metrics.contains("usage_counted_total{dimension=\"calls\"}"));
    mesh.mesh.stop().await;
}

/// Sends a request without a body, and returns the whole response.
async fn get(base: &str, path: &str, token: &str) -> String {
    let addr = base.trim_start_matches("http://");
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: {addr}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    tcp.read_to_end(&mut response).await.unwrap();
    String::from_utf8_lossy(&response).to_lowercase()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_over_rest_says_when_to_come_back() {
    let mesh = TestMesh::alone(quotas(1, 0, 0), Clock::system()).await;
    mesh.user("dev", "developer").await;
    let body = json!({ "username": "dev", "password": PASSWORD });
    let login = mesh.rest().post("/auth/login", body).await.unwrap();
    let token = login["access_token"].as_str().unwrap();
    let gateway = &mesh.mesh.ready.gateway;
    assert!(
        get(gateway, AGENTS, token)
            .await
            .starts_with("http/1.1 200")
    );
    let refused = get(gateway, AGENTS, token).await;
    assert!(refused.starts_with("http/1.1 429"), "{refused}");
    let after = refused
        .lines()
        .find_map(|l| l.strip_prefix("retry-after: "));
    let after: u64 = after.unwrap().parse().unwrap();
    assert!((1..=86_400).contains(&after), "{after}");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_or_a_search_whose_steps_do_not_fit_is_refused_before_it_starts() {
    let mesh = TestMesh::alone(quotas(0, 1000, 0), Clock::system()).await;
    let dev = mesh.user("dev", "developer").await;
    let told = over(dev.post(TRAIN, json!({ "steps": "1001" })).await);
    assert_eq!(
        (&told["dimension"], &told["left"]),
        (&json!("training_steps"), &json!("1000"))
    );
    let search = json!({ "n_trials": 11, "steps": "100" });
    over(dev.post("/api/v1/optimize", search).await);
    let runs = dev.get("/api/v1/orchestration/training").await.unwrap();
    assert_eq!(runs["runs"].as_array().unwrap().len(), 0);
    dev.post(TRAIN, json!({ "steps": "600" })).await.unwrap();
    counts(&dev, "training_steps", 600).await;
    // Until then the agent is being trained.
    eventually("the run has ended", || async {
        let again = dev.post(TRAIN, json!({ "steps": "401" })).await;
        refusal(again).0 == 429
    })
    .await;
    let told = over(dev.post(TRAIN, json!({ "steps": "401" })).await);
    assert_eq!(
        (&told["used"], &told["left"]),
        (&json!("600"), &json!("400"))
    );
    // What Orchestration has counted, AutoML learns of Auth.
    let search = json!({ "n_trials": 5, "steps": "100" });
    eventually("AutoML refuses", || async {
        let started = dev.post("/api/v1/optimize", search.clone()).await;
        started.is_err()
    })
    .await;
    mesh.mesh.stop().await;
}

/// One of the services that promise training steps, with what it has promised.
struct Promising {
    usage: Usage,
    db: Db,
    promised: u64,
    _dir: tempfile::TempDir,
}

impl Promising {
    async fn start() -> Self {
        const OUTBOX: &[Migration] = &[Migration::new(1, "usage outbox", usage::MIGRATION)];
        let dir = tempfile::tempdir().unwrap();
        let place = tars_test_db::place(dir.path(), "usage");
        Self {
            usage: Usage::detached(Clock::system()),
            db: Db::open(place, OUTBOX).await.unwrap(),
            promised: 0,
            _dir: dir,
        }
    }

    /// Promises some steps, if they fit into a quota of 1000.
    async fn promises(&mut self, steps: u64) -> bool {
        let allowance = Allowance::unlimited("dev").with(Dimension::TrainingSteps, 1000);
        let db = &mut self.db.read("test.promise");
        let ensured = self
            .usage
            .ensure_steps(db, &allowance, self.promised, steps);
        let ensured: Result<(), Ensured> = ensured.await;
        let is_promised = match ensured {
            Ok(()) => true,
            Err(Ensured::Over) => false,
            Err(Ensured::Failed(error)) => panic!("{error}"),
        };
        self.promised += if is_promised { steps } else { 0 };
        is_promised
    }

    /// Learns what all services have charged.
    fn learn(&self, charged: u64) {
        let mut amounts = Amounts::default();
        amounts.add(Dimension::TrainingSteps, charged);
        let total = Total {
            month: self.usage.month(),
            user_id: "dev".to_owned(),
            amounts,
        };
        self.usage.learn(&Answer {
            totals: vec![total],
            ..Answer::default()
        });
    }
}

/// Why steps were not ensured.
#[derive(Debug)]
enum Ensured {
    Over,
    Failed(DbError),
}

impl From<QuotaRefusal> for Ensured {
    fn from(_: QuotaRefusal) -> Self {
        Self::Over
    }
}

impl From<DbError> for Ensured {
    fn from(error: DbError) -> Self {
        Self::Failed(error)
    }
}

#[tokio::test]
async fn three_services_promise_what_is_left_three_times_and_no_more() {
    let mut services = [
        Promising::start().await,
        Promising::start().await,
        Promising::start().await,
    ];
    let used = 400;
    services.iter().for_each(|service| service.learn(used));
    for service in &mut services {
        assert!(!service.promises(601).await);
        assert!(service.promises(500).await && service.promises(100).await);
        assert!(!service.promises(1).await, "its own promises count");
    }
    let promised: u64 = services.iter().map(|service| service.promised).sum();
    let left = 1000 - used;
    assert_eq!(
        used + promised,
        1000 + 2 * left,
        "twice what was left beyond"
    );
    // One of them charges what it has promised: from then on it is no promise, and the others know.
    services[0].promised = 0;
    services.iter().for_each(|service| service.learn(1000));
    for service in &mut services {
        assert!(!service.promises(1).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_steps_of_trials_are_counted_once() {
    let mesh = TestMesh::start().await;
    let dev = mesh.user("dev", "developer").await;
    let search = json!({ "n_trials": 2, "steps": "300", "pruner_type": "none" });
    let started = dev.post("/api/v1/optimize", search).await.unwrap();
    let study = started["optimization_id"].as_str().unwrap();
    let path = format!("/api/v1/studies/{study}");
    eventually("the study ends", || async {
        let shown = dev.get(&path).await.unwrap_or_default();
        shown.to_string().contains("STUDY_STATE_COMPLETED")
    })
    .await;
    counts(&dev, "training_steps", 600).await;
    // What was counted twice would be known by the time that later work is.
    let run = json!({ "steps": "100" });
    dev.post("/api/v1/orchestration/agents/policy/train", run)
        .await
        .unwrap();
    counts(&dev, "training_steps", 700).await;
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_solve_takes_no_more_than_is_left() {
    let mesh = TestMesh::alone(quotas(0, 0, 2), Clock::system()).await;
    let dev = mesh.user("dev", "developer").await;
    let told = over(
        dev.post(NASH, matching_pennies(json!({ "time_limit": "2.5s" })))
            .await,
    );
    assert_eq!(
        (&told["dimension"], &told["left"]),
        (&json!("solver_seconds"), &json!("2"))
    );
    assert_eq!(amount(&own(&dev).await, "solver_microseconds"), 0);
    let solved = dev
        .post(NASH, matching_pennies(json!({ "time_limit": "1s" })))
        .await;
    assert_eq!(solved.unwrap()["converged"], true);
    dev.post(NASH, matching_pennies(json!({}))).await.unwrap();
    eventually("it is counted", || async {
        amount(&own(&dev).await, "solver_microseconds") > 0
    })
    .await;
    let shown = dev.get("/auth/usage").await.unwrap();
    assert_eq!(shown["quota"]["solver_seconds"], "2");
    mesh.mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_month_begins_by_the_clock() {
    const LAST: Duration = Duration::from_secs(600);
    let clock = Clock::settable();
    let before = Month::at(clock.now() + LAST);
    clock.step_forward(before.end() - LAST - clock.now());
    let mesh = TestMesh::alone(quotas(2, 0, 0), clock.clone()).await;
    let dev = mesh.user("dev", "developer").await;
    for _ in 0..2 {
        dev.get(AGENTS).await.unwrap();
    }
    over(dev.get(AGENTS).await);
    counts(&dev, "calls", 2).await;
    clock.step_forward(LAST);
    let dev = mesh.rest().login("dev", PASSWORD).await.unwrap();
    dev.get(AGENTS).await.unwrap();
    let range = format!("/auth/usage?month={before}&last_month={}", before.next());
    eventually("it counts for the new month", || async {
        let months = dev.get(&range).await.unwrap()["months"].clone();
        (&months[0]["calls"], &months[1]["calls"]) == (&json!("2"), &json!("1"))
    })
    .await;
    mesh.mesh.stop().await;
}

fn write(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_follow_their_file_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("quotas.toml");
    let mut settings = config();
    settings.quotas.file = Some(file.clone());
    write(&file, "[quota]\ncalls = 1000000");
    let mesh = TestMesh::alone(settings, Clock::system()).await;
    let (dev, eve) = (
        mesh.user("dev", "developer").await,
        mesh.user("eve", "viewer").await,
    );
    dev.get(AGENTS).await.unwrap();
    write(&file, "[[override]]\nrole = \"developer\"\ncalls = 1");
    let limit = async |who: &Rest| who.get("/auth/usage").await.unwrap()["quota"]["calls"].clone();
    eventually("the role has a quota", || async {
        limit(&dev).await == "1"
    })
    .await;
    over(dev.get(AGENTS).await);
    assert!(limit(&eve).await.is_null());
    eve.get(AGENTS).await.unwrap();
    let readyz = Rest::new(&mesh.mesh.ready.observe);
    write(&file, "[quota]\ncals = 1");
    eventually("a mistake is shown", || async {
        readyz
            .text("/readyz")
            .await
            .unwrap()
            .contains("what was in force stays so")
    })
    .await;
    let shown = readyz.text("/readyz").await.unwrap();
    assert!(!shown.contains("cals"), "to anybody who asks: {shown}");
    over(dev.get(AGENTS).await);
    write(&file, "[[override]]\nuser = \"dev\"\ncalls = 100");
    eventually("the user has a quota", || async {
        limit(&dev).await == "100"
    })
    .await;
    dev.get(AGENTS).await.unwrap();
    write(&file, "[[override]]\nuser = \"dve\"\ncalls = 100");
    eventually("a user who does not exist is shown", || async {
        let shown = readyz.text("/readyz").await.unwrap();
        shown.contains("there is no user dve, who has a quota")
    })
    .await;
    write(&file, "[[override]]\nuser = \"dev\"\ncalls = 100");
    eventually("the name was mended", || async {
        !readyz.text("/readyz").await.unwrap().contains("dve")
    })
    .await;
    mesh.mesh.stop().await;
}
