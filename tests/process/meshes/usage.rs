//! Usage over the command line, and over a kill.

use crate::home::{Desk, Home, stderr};
use serde_json::{Value, json};
use tars::rest::Rest;
use tars_tests::{PASSWORD, eventually, process::Running};

const AGENTS: &str = "/api/v1/orchestration/agents/state";

/// A developer, logged in over REST.
async fn developer(mesh: &Running, name: &str) -> Rest {
    let body = json!({ "username": name, "password": PASSWORD, "roles": ["developer"] });
    mesh.admin().await.post("/admin/users", body).await.unwrap();
    let rest = Rest::new(&mesh.ready.gateway);
    rest.login(name, PASSWORD).await.unwrap()
}

async fn calls(rest: &Rest) -> u64 {
    let usage = rest.get("/auth/usage").await.unwrap();
    usage["months"][0]["calls"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

async fn counts(rest: &Rest, expected: u64) {
    eventually("the calls are counted", || async {
        calls(rest).await == expected
    })
    .await;
}

/// The rows of an export, as user and calls.
fn parsed(csv: &str) -> Vec<(String, u64)> {
    let mut lines = csv.lines();
    let head: Vec<&str> = lines.next().unwrap().split(',').collect();
    let at = |name| head.iter().position(|column| *column == name).unwrap();
    let (user, calls) = (at("username"), at("calls"));
    let row = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        (fields[user].to_owned(), fields[calls].parse().unwrap())
    };
    lines.map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_reads_back_as_what_is_shown() {
    let desk = Desk::new();
    let (ada, bob) = (
        developer(&desk.mesh, "ada").await,
        developer(&desk.mesh, "bob").await,
    );
    for _ in 0..3 {
        ada.get(AGENTS).await.unwrap();
    }
    bob.get(AGENTS).await.unwrap();
    counts(&ada, 3).await;
    counts(&bob, 1).await;
    let csv = parsed(&desk.good(&["usage", "export"]));
    let of = |name: &str| csv.iter().find(|(user, _)| user == name).unwrap().1;
    assert_eq!((of("ada"), of("bob")), (3, 1));
    let jsonl = desk.good(&["usage", "export", "--format", "jsonl"]);
    let rows: Vec<Value> = jsonl
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let of = |name: &str| rows.iter().find(|row| row["username"] == name).unwrap();
    assert_eq!(of("ada")["calls"].as_u64(), Some(3));
    assert_eq!(of("ada")["closed"], false);
    let one = desk.json(&["usage", "show", "--user", "ada"]);
    assert_eq!(
        (one.as_array().unwrap().len(), &one[0]["calls"]),
        (1, &json!("3"))
    );
    let shown = desk.good(&["usage", "show", "--all"]);
    assert!(shown.contains("ada") && shown.contains("bob"), "{shown}");
    let (own, notes) = desk.good_with_notes(&["usage", "show"]);
    assert!(
        own.contains("admin") && own.contains("LEFT") && notes.contains("unlimited"),
        "{own}{notes}"
    );
    assert!(
        !shown.contains("LEFT"),
        "the quotas of others are theirs: {shown}"
    );
    let past = desk.good(&["usage", "export", "--month", "2020-01"]);
    assert_eq!(past.lines().count(), 1, "{past}");
    for bad in [
        &["usage", "export", "--month", "2020-13"][..],
        &["usage", "show", "--last-month", "2026-11"],
        &["usage", "show", "--all", "--user", "ada"],
        &["usage", "show", "--user", "nobody"],
    ] {
        desk.refused(bad);
    }
    let refused = desk.run(&["usage", "show", "--user", "nobody", "--json"]);
    assert!(stderr(&refused).contains("NOT_FOUND"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_mesh_counts_nothing_twice_and_loses_what_it_has_not_written() {
    let home = Home::new();
    let mut mesh = home.builder("data").unlimited().start();
    let ada = developer(&mesh, "ada").await;
    for _ in 0..10 {
        ada.get(AGENTS).await.unwrap();
    }
    counts(&ada, 10).await;
    // What the last second has counted may be lost; the rest waits in the outbox.
    for _ in 0..10 {
        ada.get(AGENTS).await.unwrap();
    }
    mesh.kill();
    drop(mesh);
    let mesh = home.builder("data").unlimited().start();
    let ada = Rest::new(&mesh.ready.gateway)
        .login("ada", PASSWORD)
        .await
        .unwrap();
    for _ in 0..5 {
        ada.get(AGENTS).await.unwrap();
    }
    eventually("the new calls are counted", || async {
        calls(&ada).await >= 15
    })
    .await;
    let counted = calls(&ada).await;
    assert!((15..=25).contains(&counted), "{counted}");
    // Nothing is left that would be counted later.
    for _ in 0..3 {
        ada.get(AGENTS).await.unwrap();
    }
    counts(&ada, counted + 3).await;
}
