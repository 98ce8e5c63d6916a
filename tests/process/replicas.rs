//! `tars up --replicas N`: a supervisor, and a process for each replica.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
};
use tars::{
    app::Replica,
    rest::{Rest, RestError},
};
use tars_tests::{
    PASSWORD, eventually, governed,
    process::{Running, Up, is_in_use, kill},
};

fn tars() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tars"))
}

fn two(data: &Path) -> Running {
    Up::new(tars(), data).unlimited().replicas(2).start()
}

/// What the ready file says of a replica now.
fn current(mesh: &Running, number: u32) -> Option<Replica> {
    let replicas = mesh.current()?.replicas;
    replicas
        .into_iter()
        .find(|replica| replica.number == number)
}

async fn logged_in(mesh: &Running, gateway: &str) -> Result<Rest, RestError> {
    let password = std::fs::read_to_string(&mesh.ready.admin_password_file).unwrap();
    Rest::new(gateway).login("admin", &password).await
}

fn refused(args: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let data = tempfile::tempdir().unwrap();
    let mut command = tars();
    command
        .arg("up")
        .args(args)
        .arg("--data-dir")
        .arg(data.path());
    command.envs(variables.iter().copied());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), text)
}

#[test]
fn several_replicas_need_a_database_that_they_can_share() {
    let (code, text) = refused(&["--replicas", "2"], &[]);
    assert_eq!(code, Some(64), "{text}");
    assert!(text.contains("database.url"), "{text}");
    for count in ["0", "17", "-1", "many"] {
        let (code, text) = refused(&["--replicas", count], &[]);
        assert_eq!(code, Some(2), "{text}");
    }
}

#[test]
fn addresses_that_replicas_cannot_have_are_all_reported_before_one_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = format!("--gateway-addr={}", taken.local_addr().unwrap());
    let url = "postgresql://nobody@localhost/nothing?host=/nowhere";
    let observe = "--observe-addr=127.0.0.1:65530";
    let args = ["--replicas", "2", &gateway, observe];
    let (code, text) = refused(&args, &[("TARS__DATABASE__URL", url)]);
    assert_eq!(code, Some(69), "{text}");
    for expected in ["gateway of replica 1", "observe of replica 2"] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
}

#[test]
fn replicas_that_cannot_start_end_the_command_with_the_reason() {
    let url = "postgresql://nobody@localhost/nothing?host=/nowhere";
    let free = tars_tests::fleet::free_ports().collect::<Vec<_>>();
    let mut args = vec!["--replicas", "2"];
    args.extend(free.iter().map(String::as_str));
    let (code, text) = refused(&args, &[("TARS__DATABASE__URL", url)]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("replica 1 ended before it was ready"),
        "{text}"
    );
    assert!(
        text.contains("database"),
        "the replica's own message: {text}"
    );
    assert!(!text.contains("replica 2"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and redis-server: cargo xtask test"]
async fn two_replicas_serve_the_same_and_one_that_is_killed_comes_back() {
    let data = tempfile::tempdir().unwrap();
    let mesh = two(data.path());
    let [first, second] = &mesh.ready.replicas[..] else {
        panic!("{:?}", mesh.ready.replicas);
    };
    assert_eq!((first.number, second.number), (1, 2));
    assert_eq!(mesh.ready.gateway, first.urls["gateway"]);
    let addresses: BTreeSet<_> = [first, second]
        .into_iter()
        .flat_map(|r| r.urls.values())
        .collect();
    assert_eq!(addresses.len(), 14, "{addresses:?}");

    // What is made at one replica is there at the other.
    let one = logged_in(&mesh, &first.urls["gateway"]).await.unwrap();
    let two = logged_in(&mesh, &second.urls["gateway"]).await.unwrap();
    let ada = json!({ "username": "ada", "password": PASSWORD, "roles": ["developer"] });
    one.post("/admin/users", ada).await.unwrap();
    let has_ada = |users: &Value| users.to_string().contains("\"ada\"");
    assert!(has_ada(&two.get("/admin/users").await.unwrap()));
    let study = governed::study(&one, 1).await;
    governed::finished(&two, &study).await;

    kill(second.pid);
    for _ in 0..50 {
        let listed = one.get("/api/v1/studies").await;
        // A call that was in flight to the replica is lost with it, and says so.
        if let Err(lost) = listed {
            let (status, body) = tars_tests::refusal::<Value>(Err(lost));
            assert_eq!(status, 503, "{body}");
        }
    }
    eventually("the replica is started again", || async {
        current(&mesh, 2).is_some_and(|now| now.pid != second.pid)
    })
    .await;
    let now = current(&mesh, 2).unwrap();
    assert_eq!(now.urls, second.urls);
    eventually("it serves", || async {
        two.get("/admin/users")
            .await
            .is_ok_and(|users| has_ada(&users))
    })
    .await;
    let log = mesh.logged();
    assert!(
        log.contains("a replica ended; it is started again"),
        "{log}"
    );
    for line in ["replica=1", "replica=2"] {
        assert!(log.contains(line), "{line}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and redis-server: cargo xtask test"]
async fn commands_find_a_mesh_of_replicas_as_they_find_one_process() {
    let (data, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mesh = two(data.path());
    let kept = data.path().join("admin-password");
    assert_eq!(mesh.ready.admin_password_file, kept);
    let run = |args: &[&str]| {
        let mut command = tars();
        command.args(args).arg("--data-dir").arg(data.path());
        command.env("HOME", home.path()).stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {text}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(&["probe", "hypersync"]).contains("serving"));
    let password = kept.display().to_string();
    run(&["login", "--username", "admin", "--password-file", &password]);
    assert!(run(&["users", "list"]).contains("admin"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and redis-server: cargo xtask test"]
async fn replicas_end_with_their_supervisor_however_it_ends() {
    let data = tempfile::tempdir().unwrap();
    let mut mesh = two(data.path());
    let replicas = mesh.ready.replicas.clone();
    assert!(replicas.iter().all(|replica| is_in_use(&replica.data_dir)));
    mesh.process.terminate();
    assert_eq!(mesh.process.exit_code(), Some(0), "{}", mesh.logged());
    assert!(!replicas.iter().any(|replica| is_in_use(&replica.data_dir)));
    assert!(mesh.current().is_none(), "it is not found any more");
    drop(mesh);

    // The replicas notice that nobody supervises them.
    let mut mesh = two(data.path());
    mesh.process.kill();
    eventually("they end by themselves", || async {
        !replicas.iter().any(|replica| is_in_use(&replica.data_dir))
    })
    .await;
    let again = two(data.path());
    let login = logged_in(&again, &again.ready.gateway).await;
    login.expect("the password is the same as at first");
}
