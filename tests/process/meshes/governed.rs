//! The governed change of an agent from the command line: studies, proposals, decisions.

use crate::home::{Desk, Home, stderr};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::OpenOptionsExt,
    process::{Child, Stdio},
};
use tars::rest::Rest;
use tars_tests::{PASSWORD, governed};

const NOBODYS: &str = "019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d";

/// A developer with a machine of its own, logged in.
pub(crate) struct Developer {
    pub(crate) home: Home,
    gateway: String,
    pub(crate) rest: Rest,
}

impl Developer {
    pub(crate) async fn new(desk: &Desk) -> Self {
        let admin = desk.mesh.admin().await;
        let user = json!({ "username": "dev", "password": PASSWORD, "roles": ["developer"] });
        admin.post("/admin/users", user).await.unwrap();
        let gateway = desk.mesh.ready.gateway.clone();
        let home = Home::new();
        let file = home.path("password");
        let mut options = fs::File::options();
        let mut password = options
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&file)
            .unwrap();
        password.write_all(PASSWORD.as_bytes()).unwrap();
        let login = ["login", "--username", "dev", "--password-file", &file];
        home.good(&[&login[..], &["--gateway", &gateway]].concat());
        let rest = Rest::new(&gateway).login("dev", PASSWORD).await.unwrap();
        Self {
            home,
            gateway,
            rest,
        }
    }

    pub(crate) fn with<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [args, &["--gateway", &self.gateway]].concat()
    }

    pub(crate) fn good(&self, args: &[&str]) -> (String, String) {
        self.home.good_with_notes(&self.with(args))
    }
}

/// The proposal's id at the start of what `propose` prints. It is measured on so many seeds that chance does not decide
/// about it.
fn proposed(developer: &Developer, study: &str) -> String {
    proposed_with(developer, study, "16")
}

pub(crate) fn proposed_with(developer: &Developer, study: &str, seeds: &str) -> String {
    let propose = ["proposals", "propose", study, "--note", "try it"];
    let with = ["--verification-seeds", seeds];
    let (printed, notes) = developer.good(&[&propose[..], &with].concat());
    let (id, state) = printed.trim().split_once(": ").unwrap();
    assert_eq!(state, "pending_approval");
    assert!(notes.contains("tars proposals"), "the next step: {notes}");
    id.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_study_is_followed_proposed_approved_by_another_and_applied() {
    let desk = Desk::new();
    let developer = Developer::new(&desk).await;
    let study = governed::study(&developer.rest, 2).await;
    let (watched, notes) = developer.good(&["studies", "watch", &study]);
    for part in ["trial 0", "trial 1", "score", "completed: best score"] {
        assert!(watched.contains(part), "{part}: {watched}");
    }
    let propose = format!("tars proposals propose {study}");
    assert!(notes.contains(&propose), "{notes}");
    let (listed, _) = developer.good(&["studies", "list"]);
    let row = listed.lines().find(|l| l.starts_with(&study)).unwrap();
    assert!(row.contains("completed") && row.contains("2/2"), "{row}");
    let (shown, _) = developer.good(&["studies", "show", &study]);
    assert!(shown.contains("learning_rate=0.003"), "{shown}");

    let id = proposed(&developer, &study);
    let (assessed, _) = developer.good(&["proposals", "watch", &id, "--until", "assessed"]);
    assert!(
        assessed.contains("improvement"),
        "what was measured: {assessed}"
    );
    let pending = desk.json(&["proposals", "list"]);
    assert_eq!(pending[0]["update_id"], *id, "{pending}");
    let shown = desk.good(&["proposals", "show", &id]);
    for part in [
        "pending_approval",
        "try it",
        "user:dev",
        "improvement",
        "learning_rate",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    // The developer may not decide; an administrator may, and sees how to go on.
    let own = developer
        .home
        .run(&developer.with(&["proposals", "approve", &id, "--json"]));
    assert_eq!(own.status.code(), Some(77), "{}", stderr(&own));
    let status: Value = serde_json::from_str(&stderr(&own)).unwrap();
    assert!(status["reason"].is_string(), "{status}");
    assert!(status["details"].is_array(), "{status}");
    let (approved, notes) = desk.good_with_notes(&["proposals", "approve", &id]);
    assert_eq!(approved.trim(), format!("{id}: approved"));
    assert!(
        notes.contains(&format!("tars proposals apply {id}")),
        "{notes}"
    );
    let (listed, _) = desk.good_with_notes(&["proposals", "list"]);
    let row = listed.lines().find(|l| l.starts_with(&id)).unwrap();
    assert!(
        row.contains("approved") && row.ends_with("apply"),
        "what waits to be applied is listed: {row}"
    );
    let (applied, notes) = desk.good_with_notes(&["proposals", "apply", &id]);
    assert!(notes.contains("verifying ..."), "a sign of life: {notes}");
    for part in ["verifying", "completed", "verification"] {
        assert!(applied.contains(part), "{part}: {applied}");
    }
    let (waiting, notes) = desk.good_with_notes(&["proposals", "list"]);
    assert!(
        !waiting.contains(&id) && notes.contains("--all"),
        "{waiting}{notes}"
    );
    assert!(desk.good(&["proposals", "list", "--all"]).contains(&id));
    // What has been decided is not decided again, and the error says where to look.
    let error = desk.refused(&["proposals", "reject", &id, "--reason", "late"]);
    assert!(
        error.contains(&format!("tars proposals show {id}")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proposal_is_withdrawn_rejected_or_refused_with_the_way_out() {
    let desk = Desk::new();
    let developer = Developer::new(&desk).await;
    let study = governed::study(&developer.rest, 1).await;
    governed::finished(&developer.rest, &study).await;
    let first = proposed(&developer, &study);
    let again = developer
        .home
        .refused(&developer.with(&["proposals", "propose", &study]));
    assert!(
        again.contains(&format!("tars proposals show {first}")),
        "{again}"
    );
    let (withdrawn, _) = developer.good(&["proposals", "withdraw", &first]);
    assert_eq!(withdrawn.trim(), format!("{first}: withdrawn"));
    let second = proposed(&developer, &study);
    let rejected = desk.good(&["proposals", "reject", &second, "--reason", "too few seeds"]);
    assert_eq!(rejected.trim(), format!("{second}: rejected"));
    let shown = desk.json(&["proposals", "show", &second]);
    assert_eq!(shown["reason"], "too few seeds", "{shown}");
    let error = desk.refused(&[
        "proposals",
        "resolve",
        &second,
        "roll-back",
        "--reason",
        "x",
    ]);
    assert!(
        error.contains("tars proposals show"),
        "it needs no attention: {error}"
    );
    // Nobody decides about a proposal of their own.
    let own =
        governed::text(&governed::proposed(&desk.mesh.admin().await, &study).await["update_id"]);
    let error = desk.refused(&["proposals", "approve", &own, "--without-assessment"]);
    assert!(error.contains("another user"), "{error}");
    // A drift of the agent makes it stale, which is shown.
    let reload = json!({ "hyperparameters": { "gamma": 0.91 }, "reason": "a test" });
    let path = format!("{}/reload", governed::POLICY);
    developer.rest.post(&path, reload).await.unwrap();
    let shown = desk.good(&["proposals", "show", &own]);
    assert!(shown.contains("made against version 1"), "{shown}");
    let (_, advice) = desk.good_with_notes(&["proposals", "show", &own]);
    let again = format!("tars proposals propose {study}");
    assert!(
        advice.contains(&again) && !advice.contains("apply it"),
        "{advice}"
    );
}

#[test]
fn a_study_is_created_and_followed_and_an_interrupt_stops_only_the_command() {
    let desk = Desk::new();
    let create = ["studies", "create", "--trials", "2", "--steps", "500"];
    let (made, notes) = desk.good_with_notes(&[&create[..], &["--seed", "7"]].concat());
    let (id, described) = made.trim().split_once(": ").unwrap();
    let expected = "2 trials of 500 steps in cartpole for the agent policy, seed 7";
    assert!(described.contains(expected), "{made}");
    assert!(
        notes.contains(&format!("tars studies watch {id}")),
        "{notes}"
    );
    let followed = desk.good(&[&create[..], &["--watch", "--json"]].concat());
    let lines: Vec<Value> = followed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["study"]["n_trials"], 2, "{followed}");
    let last = &lines[lines.len() - 1]["ended"];
    assert_eq!(last["study_id"], lines[0]["study"]["study_id"]);
    assert_eq!(last["state"], "STUDY_STATE_COMPLETED", "{followed}");

    let long = ["--trials", "500", "--steps", "100000", "--watch", "--json"];
    let mut command = desk.tars(&[&["studies", "create"][..], &long].concat());
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut watching = command.spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let study: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let id = governed::text(&study["study"]["study_id"]);
    // It follows the study by now.
    lines.next().unwrap().unwrap();
    interrupt(&watching);
    // Whatever it still prints is read, so that it can end.
    lines.for_each(drop);
    let ended = watching.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", stderr(&ended));
    let error: Value = serde_json::from_str(&stderr(&ended)).unwrap();
    let goes_on = format!("tars studies watch {id}");
    assert!(
        error["message"].as_str().unwrap().contains(&goes_on),
        "{error}"
    );
    let running = desk.json(&["studies", "show", &id]);
    assert_eq!(
        running["study"]["state"], "STUDY_STATE_RUNNING",
        "{running}"
    );
    desk.good(&["studies", "cancel", &id, "--yes"]);
}

#[test]
fn a_study_that_the_service_refuses_is_not_created() {
    let desk = Desk::new();
    let listed = || desk.json(&["studies", "list"]).as_array().unwrap().len();
    let space = desk.home.path("space.json");
    fs::write(
        &space,
        r#"[{ "name": "gamma", "float": { "low": 2, "high": 1 } }]"#,
    )
    .unwrap();
    for (args, part) in [
        (&["--agent", "nobody"][..], "nobody"),
        (&["--trials", "0"], "--trials"),
        (&["--space", &space], "gamma"),
    ] {
        let error = desk.refused(&[&["studies", "create"], args].concat());
        assert!(error.contains(part), "{args:?}: {error}");
    }
    assert_eq!(listed(), 0);
}

fn interrupt(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_study_is_cancelled_only_when_it_is_meant() {
    let desk = Desk::new();
    let rest = desk.mesh.admin().await;
    let long = json!({ "n_trials": 500, "steps": "100000" });
    let started = rest.post("/api/v1/optimize", long).await.unwrap();
    let id = started["optimization_id"].as_str().unwrap();
    let asked = desk.run(&["studies", "cancel", id]);
    assert_eq!(asked.status.code(), Some(64), "{}", stderr(&asked));
    let running = desk.json(&["studies", "show", id]);
    assert_eq!(
        running["study"]["state"], "STUDY_STATE_RUNNING",
        "{running}"
    );
    let cancelled = desk.good(&["studies", "cancel", id, "--yes"]);
    assert!(cancelled.starts_with("cancelled"), "{cancelled}");
    let again = desk.refused(&["studies", "cancel", id, "--yes"]);
    assert!(again.contains("has ended already"), "{again}");
    // What did not complete is no success of the one who watches it.
    let watched = desk.run(&["studies", "watch", id, "--json"]);
    assert_eq!(watched.status.code(), Some(1), "{}", stderr(&watched));
    let lines = String::from_utf8(watched.stdout).unwrap();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(last["ended"]["state"], "STUDY_STATE_CANCELLED", "{last}");
}

#[test]
fn an_unknown_id_is_refused_with_the_command_that_lists_them() {
    let desk = Desk::new();
    for (args, list) in [
        (&["studies", "show", NOBODYS][..], "tars studies list"),
        (&["studies", "watch", NOBODYS], "tars studies list"),
        (
            &["studies", "cancel", NOBODYS, "--yes"],
            "tars studies list",
        ),
        (&["proposals", "propose", NOBODYS], "tars studies list"),
        (&["proposals", "show", NOBODYS], "tars proposals list --all"),
        (
            &["proposals", "watch", NOBODYS],
            "tars proposals list --all",
        ),
        (
            &["proposals", "apply", NOBODYS],
            "tars proposals list --all",
        ),
        (
            &["proposals", "approve", NOBODYS],
            "tars proposals list --all",
        ),
        (
            &["proposals", "withdraw", NOBODYS],
            "tars proposals list --all",
        ),
    ] {
        let done = desk.run(args);
        let error = stderr(&done);
        assert_eq!(done.status.code(), Some(1), "{args:?}: {error}");
        assert!(error.contains(list), "{args:?}: {error}");
    }
    for args in [
        &["studies", "show", "42"][..],
        &["proposals", "apply", "../x"],
    ] {
        let done = desk.run(args);
        assert_eq!(done.status.code(), Some(2), "not an id: {}", stderr(&done));
    }
}

#[test]
fn agents_are_listed_shown_and_reloaded() {
    let desk = Desk::new();
    let listed = desk.good(&["agents", "list"]);
    let head = listed.lines().next().unwrap();
    assert!(
        head.contains("HYPERPARAMETERS") && !head.contains("VERSION"),
        "{head}"
    );
    let row = listed.lines().find(|l| l.starts_with("policy")).unwrap();
    assert!(
        row.contains("version 1") && row.ends_with("approved"),
        "{listed}"
    );
    let reloaded = desk.good(&[
        "agents",
        "reload",
        "policy",
        "gamma=0.91",
        "--reason",
        "a test",
    ]);
    assert_eq!(reloaded, "version 2 of the hyperparameters is live\n");
    let shown = desk.good(&["agents", "show", "policy"]);
    let gamma = shown.lines().find(|l| l.starts_with("gamma")).unwrap();
    let cells: Vec<&str> = gamma.split_whitespace().collect();
    assert_eq!(cells[..2], ["gamma", "0.91"]);
    assert_ne!(cells[2], "0.91", "what was approved is shown beside it");
    let listed = desk.json(&["agents", "list"]);
    let mut listed = listed.as_array().unwrap().iter();
    let policy = listed.find(|agent| agent["agent_id"] == "policy").unwrap();
    assert_eq!(policy["version"], "2");
    for (args, part) in [
        (&["gamma=7"][..], "gamma"),
        (&["nothing=1"], "nothing"),
        (
            &["gamma=0.92", "--expect-version", "1"],
            "tars agents show policy",
        ),
    ] {
        let error = desk.refused(&[&["agents", "reload", "policy"], args].concat());
        assert!(error.contains(part), "{args:?}: {error}");
    }
    let unknown = desk.refused(&["agents", "show", "nobody"]);
    assert!(unknown.contains("tars agents list"), "{unknown}");
    for (args, part) in [
        (&["promote", "nobody", "1"][..], "tars agents list"),
        (&["rollback", "nobody"], "tars agents list"),
        (&["versions", "nobody"], "tars agents list"),
        (&["compare", "nobody"], "tars agents list"),
        (&["promote", "policy", "9"], "tars agents versions policy"),
        (
            &["promote", "policy", "--rule", "nothing"],
            "tars agents show policy",
        ),
        (&["compare", "policy"], "tars training start"),
        (&["compare", "policy", "--stored"], "tars training start"),
        (&["reload", "policy", "gama=0.9"], "did you mean gamma?"),
    ] {
        let error = desk.refused(&[&["agents"], args].concat());
        assert!(error.contains(part), "{args:?}: {error}");
    }
    let version = desk.good(&["agents", "reload", "policy", "--preset", "gamma=0.93"]);
    assert_eq!(version, "version 3 of the hyperparameters is live\n");
    let live = &desk.json(&["agents", "show", "policy"])["hyperparameters"];
    assert_eq!((&live["gamma"], &live["tau"]), (&json!(0.93), &json!(1)));
    let wrong = desk.run(&["agents", "reload", "policy", "gamma"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", stderr(&wrong));
}

#[test]
fn a_session_is_created_stepped_listed_and_closed() {
    let desk = Desk::new();
    let id = desk.good(&["sessions", "create", "--seed", "7"]);
    let id = id.trim();
    let shown = desk.good(&["sessions", "step", id]);
    for part in [
        "reward",
        "rule first_action",
        "nash conv",
        "1: step 1 of episode 1",
        "weighted sum",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let several = desk.good(&["sessions", "step", id, "--quick", "--count", "3"]);
    assert_eq!(several.lines().count(), 4, "{several}");
    let stepped = desk.json(&["sessions", "step", id, "--quick"]);
    assert_eq!(stepped["world"]["step"], "5");
    let found = desk.good(&["sessions", "nash", id]);
    assert!(
        found.contains("equilibrium  found by") && found.contains("100%"),
        "{found}"
    );
    let closed = desk.good(&["sessions", "close", id]);
    assert_eq!(closed, "closed after 5 steps\n");
    let watched = desk.good(&["sessions", "watch", id]);
    assert_eq!(watched.lines().count(), 6, "{watched}");
    let listed = desk.json(&["sessions", "list"]);
    assert_eq!(
        (&listed[0]["session_id"], &listed[0]["seed"]),
        (&id.into(), &"7".into())
    );
    let refused = desk.refused(&["sessions", "step", id]);
    assert!(refused.contains("tars sessions create"), "{refused}");
    let unknown = "0198f1c2-7d3a-7e54-9b1c-2f6d8a4b1c90";
    let refused = desk.refused(&["sessions", "close", unknown]);
    assert!(refused.contains("tars sessions list"), "{refused}");

    // A share that is full is said to be that, with what helps.
    let full = loop {
        let created = desk.run(&["sessions", "create"]);
        if !created.status.success() {
            break stderr(&created);
        }
    };
    assert!(
        full.contains("sessions are open already") && full.contains("--all"),
        "{full}"
    );
    let closed = desk.good(&["sessions", "close", "--all"]);
    assert!(closed.starts_with("sessions closed: "), "{closed}");
    assert_eq!(
        desk.good(&["sessions", "close", "--all"]),
        "sessions closed: 0\n"
    );
}
