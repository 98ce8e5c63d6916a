//! Backups of a mesh: taken under load, restored elsewhere, and used.

use crate::home::{Desk, Home, stderr};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tars::rest::Rest;
use tars_tests::{
    PASSWORD, governed,
    process::{Running, Up},
};
use tokio::task::JoinHandle;

const KEYS: &str = "/admin/api-keys";
const USERS: &str = "/admin/users";

/// What a mesh had before the backup began.
struct Before {
    /// An API key's id and the key.
    key: (String, String),
    study: Value,
    /// An applied proposal, with what became of it.
    proposal: Value,
    agent: Value,
    audited: Vec<Value>,
}

async fn add_user(admin: &Rest, name: &str) -> bool {
    let user = json!({ "username": name, "password": PASSWORD, "roles": ["developer"] });
    admin.post(USERS, user).await.is_ok()
}

async fn page(rest: &Rest, path: &str, list: &str) -> Vec<Value> {
    let page = rest.get(path).await.unwrap();
    page[list].as_array().cloned().unwrap_or_default()
}

impl Before {
    /// Runs the main job: trained weights, a study, an applied proposal.
    async fn new(mesh: &Running) -> Self {
        let admin = mesh.admin().await;
        assert!(add_user(&admin, "dev").await);
        let developer = Rest::new(&mesh.ready.gateway);
        let developer = developer.login("dev", PASSWORD).await.unwrap();
        let train = format!("{}/train", governed::POLICY);
        let run = developer.post(&train, json!({ "steps": "500" })).await;
        let run = governed::text(&run.unwrap()["run"]["run_id"]);
        let events = format!("/api/v1/orchestration/training/{run}/events");
        let ended = developer.follow(&events, |item| item["ended"].is_null());
        ended.await.unwrap();
        let key = json!({ "service_name": "ci" });
        let key = admin.post("/auth/service-token", key).await.unwrap();
        let study = governed::study(&developer, 2).await;
        governed::finished(&developer, &study).await;
        let proposal = governed::proposed(&developer, &study).await;
        let proposal = governed::text(&proposal["update_id"]);
        governed::approve_and_apply(&admin, &proposal).await;
        let proposal = governed::final_state(&developer, &proposal).await;
        let study = developer.get(&format!("/api/v1/studies/{study}")).await;
        Self {
            key: (
                governed::text(&key["key_id"]),
                governed::text(&key["api_key"]),
            ),
            study: study.unwrap()["study"].clone(),
            proposal,
            agent: governed::agent(&admin).await,
            audited: page(&admin, "/admin/audit/logs", "events").await,
        }
    }

    /// All of it is in a restored mesh.
    async fn is_in(&self, mesh: &Running) {
        let gateway = Rest::new(&mesh.ready.gateway);
        let developer = gateway.clone().login("dev", PASSWORD).await.unwrap();
        let admin = mesh.admin().await;
        let (id, key) = &self.key;
        let keys = page(&admin, KEYS, "keys").await;
        assert!(keys.iter().any(|k| k["key_id"] == **id), "{keys:?}");
        let by_key = gateway.with_key(key).get(governed::POLICY).await;
        by_key.expect("the key is good");
        let study = governed::text(&self.study["study_id"]);
        let study = developer.get(&format!("/api/v1/studies/{study}")).await;
        assert_eq!(study.unwrap()["study"], self.study);
        let proposal = governed::text(&self.proposal["update_id"]);
        let proposal = governed::proposal(&developer, &proposal).await;
        assert_eq!(proposal["state"], self.proposal["state"]);
        assert_eq!(governed::agent(&admin).await, self.agent);
        self.acts(&developer).await;
        let logs = page(&admin, "/admin/audit/logs?page_size=500", "events").await;
        assert!(!self.audited.is_empty());
        for record in &self.audited {
            let is_there = logs.iter().any(|r| r["event_id"] == record["event_id"]);
            assert!(is_there, "{record}");
        }
    }

    /// Its weights are there.
    async fn acts(&self, developer: &Rest) {
        let state = json!({ "agent_type": "dqn", "state_vector": [0.0, 0.1, 0.02, -0.1] });
        let step = json!({ "policy_state": state });
        let step = developer.post("/api/v1/orchestration/step", step).await;
        step.expect("the agent acts");
    }
}

/// Creates users until it is stopped; returns how many were acknowledged.
fn load(admin: Rest, stop: Arc<AtomicBool>) -> JoinHandle<usize> {
    tokio::spawn(async move {
        let mut acknowledged = 0;
        while !stop.load(Ordering::Relaxed) {
            let name = format!("load{acknowledged}");
            acknowledged += usize::from(add_user(&admin, &name).await);
        }
        acknowledged
    })
}

fn db(home: &Home, args: &[&str], data: &str) -> Value {
    let named = ["--data-dir", data, "--json"];
    let printed = home.good(&[&["db"], args, &named].concat());
    serde_json::from_str(&printed).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_that_was_backed_up_under_load_goes_on_elsewhere() {
    if tars_test_db::is_postgres() {
        return;
    }
    let desk = Desk::new();
    let (home, data) = (&desk.home, desk.home.path("a"));
    let before = Before::new(&desk.mesh).await;
    let stop = Arc::new(AtomicBool::new(false));
    let loads = [load(desk.mesh.admin().await, Arc::clone(&stop))];
    let admin = desk.mesh.admin().await;
    tars_tests::eventually("a user of the load", async || {
        let users = page(&admin, "/admin/users?page_size=500", "users").await;
        users.iter().any(|user| user["username"] == "load0")
    })
    .await;
    let file = home.path("backup.tar");
    let taken = db(home, &["backup", &file], &data);
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        assert!(load.await.unwrap() > 0);
    }
    assert_eq!(taken["services"].as_array().unwrap().len(), 4, "{taken}");
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let elsewhere = home.path("b");
    let restored = db(home, &["restore", &file], &elsewhere);
    assert_eq!(restored["services"], taken["services"]);
    let again = home.refused(&["db", "restore", &file, "--data-dir", &elsewhere]);
    assert!(again.contains("is not empty"), "{again}");
    drop(desk.mesh);
    let mesh = home.up("b");
    before.is_in(&mesh).await;
    let users = page(&mesh.admin().await, "/admin/users?page_size=500", "users").await;
    assert!(users.iter().any(|user| user["username"] == "load0"));
}

/// A command on the databases of a mesh on the server.
fn db_on_server(home: &Home, args: &[&str], data: &str) -> Value {
    let mut command = home.tars(&[&["db"], args, &["--data-dir", data, "--json"]].concat());
    command.envs(tars_test_db::postgres_variables(data.as_ref()));
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", stderr(&done));
    serde_json::from_slice(&done.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: run by cargo xtask test"]
async fn a_mesh_moves_to_a_server_and_back() {
    let desk = Desk::new();
    let home = &desk.home;
    let before = Before::new(&desk.mesh).await;
    drop(desk.mesh);
    let (on_files, on_server) = (home.path("files.tar"), home.path("server.tar"));
    db(home, &["backup", &on_files], &home.path("a"));

    let data = home.path("b");
    let restored = db_on_server(home, &["restore", &on_files], &data);
    assert_eq!(restored["engine"], "sqlite");
    let mut command = home.tars(&[]);
    command.envs(tars_test_db::postgres_variables(data.as_ref()));
    let mesh = Up::new(command, data.as_ref()).unlimited();
    let mesh = mesh.replicas(2).start();
    before.is_in(&mesh).await;
    let roots = |file: &Path| fs::read_to_string(file).unwrap();
    let before_the_move = roots(&home.dir("a").join("ca/bundle.crt"));
    assert_eq!(roots(&mesh.ready.ca), before_the_move, "another authority");
    let taken = db_on_server(home, &["backup", &on_server], &data);
    assert_eq!(taken["engine"], "postgresql");
    drop(mesh);

    let data = home.path("c");
    db(home, &["restore", &on_server], &data);
    let refused = home.refused(&["up", "--data-dir", &data]);
    assert!(refused.contains("seal"), "{refused}");
    for file in ["auth/seal.key", "admin-password"] {
        fs::copy(home.dir("b").join(file), home.dir("c").join(file)).unwrap();
    }
    before.is_in(&home.up("c")).await;
}

#[test]
fn databases_are_shown_and_migrated_only_while_nobody_uses_them() {
    if tars_test_db::is_postgres() {
        return;
    }
    let home = Home::new();
    let data = home.path("a");
    let args = |command| ["db", command, "--data-dir", &data];
    let absent = home.run(&args("status"));
    assert_eq!(absent.status.code(), Some(1), "{}", stderr(&absent));
    assert!(home.refused(&args("migrate")).contains("no data directory"));
    assert!(!home.dir("a").exists(), "looking makes nothing");
    let mesh = home.up("a");
    let status = db(&home, &["status"], &data);
    let status = status.as_array().unwrap();
    assert_eq!(status.len(), 4);
    for service in status {
        assert_eq!(service["state"], "current", "{service}");
        assert_eq!(service["schema"], service["known_schema"]);
        assert_eq!(service["engine"], "sqlite");
    }
    assert_eq!(status[0]["tables"]["users"], 1, "{:?}", status[0]);
    let busy = home.run(&args("migrate"));
    assert_eq!(busy.status.code(), Some(69), "{}", stderr(&busy));
    drop(mesh);
    let migrated = home.good(&args("migrate"));
    assert_eq!(migrated.matches("nothing to do").count(), 4, "{migrated}");
}

#[test]
fn what_is_no_backup_is_refused_with_the_reason() {
    let home = Home::new();
    let (file, data) = (home.path("x.tar"), home.path("b"));
    let restore = ["db", "restore", &file, "--data-dir", &data];
    assert!(home.refused(&restore).contains(&file));
    fs::write(&file, "hello").unwrap();
    let foreign = home.refused(&restore);
    assert!(foreign.contains("is not a backup of tars"), "{foreign}");
    assert!(!home.dir("b").exists());
    let nothing = home.path("y.tar");
    let nothing = home.refused(&["db", "backup", &nothing, "--data-dir", &data]);
    assert!(nothing.contains("no database"), "{nothing}");
    assert!(!home.dir("y.tar").exists());
}
