//! A replica is suspended for longer than its leases last while it owns work, and continues after another
//! replica has taken the work over: it changes nothing any more, and the work is done once.

use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};
use tars::rest::Rest;
use tars_runtime::db::{Db, DbError, Fetch, FromRow, Place, Query, Row, Server};
use tars_tests::{
    eventually,
    faults::check_trials,
    governed,
    process::{Running, Up, freeze, thaw},
};

/// Seconds that a lease lasts here.
const LEASE: &str = "4";
const TRIALS: usize = 4;

/// Who has a lease, and under which fencing token.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    holder: String,
    token: i64,
}

impl FromRow for Held {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            holder: row.get("holder")?,
            token: row.get("token")?,
        })
    }
}

/// A service's rows, whichever replica serves.
struct Table {
    db: Db,
    service: &'static str,
}

impl Table {
    async fn of(data: &Path, service: &'static str) -> Self {
        let server = Server::of(&tars_test_db::on_postgres(data)).unwrap();
        let place = Place::Server {
            server: server.expect("a URL"),
            service: service.to_owned(),
        };
        let db = Db::attach(place).await.unwrap();
        Self { db, service }
    }

    async fn lease(&self, name: &str) -> Option<Held> {
        let find = Query::new("SELECT holder, token FROM leases WHERE name = $1").bind(name);
        self.db.read("test.lease").optional(find).await.unwrap()
    }

    async fn number(&self, text: &'static str, key: &str) -> i64 {
        let query = Query::new(text).bind(key);
        let mut db = self.db.read("test.number");
        let found = db.optional_value(query, "number").await;
        found.unwrap().unwrap_or_default()
    }
}

/// A replica that is suspended, and what it had when it was.
struct Frozen<'a> {
    table: &'a Table,
    observe: Rest,
    pid: u32,
    token: i64,
    lost: u64,
}

impl<'a> Frozen<'a> {
    /// Suspends the owner of a piece of work, and waits until it is not the owner any more.
    async fn owner(mesh: &Running, table: &'a Table, lease: &str) -> Self {
        eventually("the work has an owner", || async {
            table.lease(lease).await.is_some()
        })
        .await;
        let held = table.lease(lease).await.unwrap();
        let replica = mesh.ready.replicas.iter().find(|replica| {
            let name = replica.data_dir.join(table.service).join("replica");
            fs::read_to_string(name).unwrap() == held.holder
        });
        let replica = replica.expect("a replica is the holder");
        let observe = Rest::new(&replica.urls["observe"]);
        let lost = leases_lost(&observe, table.service).await;
        freeze(replica.pid);
        eventually("another replica takes the work over", || async {
            table.lease(lease).await.is_none_or(|now| now != held)
        })
        .await;
        let now = table.lease(lease).await;
        assert!(now.is_none_or(|now| now.token > held.token), "{held:?}");
        Self {
            table,
            observe,
            pid: replica.pid,
            token: held.token,
            lost,
        }
    }

    /// Lets it go on, and waits until it has noticed that the work is not its own.
    async fn goes_on(&self) {
        thaw(self.pid);
        eventually("it notices that it has lost the lease", || async {
            leases_lost(&self.observe, self.table.service).await > self.lost
        })
        .await;
    }
}

/// How many leases a service of a replica has lost.
async fn leases_lost(observe: &Rest, service: &str) -> u64 {
    let metrics = observe.text("/metrics").await.unwrap_or_default();
    let name = format!("leases_lost_total{{service=\"{service}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0, |count| count.parse().unwrap())
}

/// Waits until a GET shows something. A call that goes to a replica which is suspended may fail.
async fn shows(rest: &Rest, path: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    for _ in 0..2 {
        eventually(what, || async {
            rest.get(path).await.is_ok_and(|shown| is_so(&shown))
        })
        .await;
        last = rest.get(path).await.unwrap_or_default();
        if is_so(&last) {
            break;
        }
    }
    last
}

fn two(data: &Path) -> Running {
    let tars = Command::new(env!("CARGO_BIN_EXE_tars"));
    let up = Up::new(tars, data).unlimited().replicas(2);
    let up = up.env("TARS__ORCHESTRATION__CHECKPOINT_SECONDS", "1");
    up.env("TARS__DATABASE__LEASE_SECONDS", LEASE).start()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_suspended_owner_of_a_study_makes_no_trial_of_it_any_more() {
    let data = tempfile::tempdir().unwrap();
    let mesh = two(data.path());
    let rest = mesh.admin().await;
    let body = json!({ "n_trials": TRIALS, "steps": "6000", "seed": "1", "pruner_type": "none" });
    let study = rest.post("/api/v1/optimize", body).await.unwrap();
    let study = governed::text(&study["optimization_id"]);
    let automl = Table::of(data.path(), "automl").await;
    let frozen = Frozen::owner(&mesh, &automl, &format!("study/{study}")).await;
    frozen.goes_on().await;
    let path = format!("/api/v1/studies/{study}");
    let completed = |shown: &Value| shown.to_string().contains("STUDY_STATE_COMPLETED");
    shows(&rest, &path, "the study ends", completed).await;
    check_trials(&rest, &study, TRIALS).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_suspended_owner_of_a_training_run_reports_and_makes_live_nothing_any_more() {
    let data = tempfile::tempdir().unwrap();
    let mesh = two(data.path());
    let rest = mesh.admin().await;
    let body = json!({ "steps": "100000", "seed": "1" });
    let path = format!("{}/train", governed::POLICY);
    let run = rest.post(&path, body).await.unwrap();
    let run = governed::text(&run["run"]["run_id"]);
    let orchestration = Table::of(data.path(), "orchestration").await;
    let plan = || {
        let count = "SELECT reported AS number FROM run_plans WHERE CAST(run_id AS TEXT) = $1";
        orchestration.number(count, &run)
    };
    eventually("it has a checkpoint", || async { plan().await > 0 }).await;
    let frozen = Frozen::owner(&mesh, &orchestration, "learner/policy").await;
    let beyond = plan().await;
    eventually("the run is resumed", || async { plan().await > beyond }).await;
    frozen.goes_on().await;
    let path = format!("/api/v1/orchestration/training/{run}");
    let completed = |shown: &Value| shown.to_string().contains("TRAINING_STATE_COMPLETED");
    shows(&rest, &path, "the run ends", completed).await;
    let mut sequence = Vec::new();
    let events = format!("{path}/events");
    let followed = rest.follow(&events, |item| {
        sequence.push(governed::text(&item["sequence"]));
        true
    });
    followed.await.unwrap();
    let expected: Vec<String> = (1..=101).map(|n: u32| n.to_string()).collect();
    assert_eq!(sequence, expected, "every report once, and the end");
    let agent = governed::agent(&rest).await;
    assert_eq!(agent["weights_version"], "1", "made live once: {agent}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: cargo xtask test"]
async fn a_suspended_owner_of_a_proposal_changes_no_agent_any_more() {
    let data = tempfile::tempdir().unwrap();
    let mesh = two(data.path());
    let rest = mesh.admin().await;
    let body =
        json!({ "username": "dev", "password": tars_tests::PASSWORD, "roles": ["developer"] });
    rest.post("/admin/users", body).await.unwrap();
    let gateway = Rest::new(&mesh.ready.gateway);
    let developer = gateway.login("dev", tars_tests::PASSWORD).await.unwrap();
    let study = governed::study(&developer, 1).await;
    governed::finished(&developer, &study).await;
    let proposed = governed::proposed(&developer, &study).await;
    let id = governed::text(&proposed["update_id"]);
    governed::approve_and_apply(&rest, &id).await;
    governed::in_state(&rest, &id, "PROPOSAL_STATE_VERIFYING").await;
    let (saga, hypersync) = (
        format!("saga/{id}"),
        Table::of(data.path(), "hypersync").await,
    );
    let frozen = Frozen::owner(&mesh, &hypersync, &saga).await;
    let orchestration = Table::of(data.path(), "orchestration").await;
    let work = format!("hypersync/{saga}");
    let token = || {
        let token = "SELECT token AS number FROM work_tokens WHERE work = $1";
        orchestration.number(token, &work)
    };
    eventually("Orchestration knows the next owner", || async {
        token().await > frozen.token
    })
    .await;
    frozen.goes_on().await;
    let path = format!("/api/v1/sync/proposals/{id}");
    let completed = |shown: &Value| shown.to_string().contains("PROPOSAL_STATE_COMPLETED");
    shows(&rest, &path, "the proposal ends", completed).await;
    let agent = governed::agent(&rest).await;
    assert_eq!(agent["version"], "2", "applied once: {agent}");
    assert!(agent["hold"].is_null(), "{agent}");
}
