//! `tars up --replicas N`: a supervisor, and a process for each replica.

#![allow(clippy::unwrap_used)]

use std::{
    net::TcpListener,
    process::{Command, Stdio},
};

fn tars() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tars"))
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
