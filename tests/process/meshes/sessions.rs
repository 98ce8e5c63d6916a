//! The session with a mesh: whom it is shown to, what it follows, and when it ends.

use crate::home::{Desk, Home, text};
use serde_json::Value;
use std::{fs, process::Stdio};

#[test]
fn a_session_is_not_shown_to_another_mesh_in_the_same_place() {
    let home = Home::new();
    let first = home.up("a");
    let gateway = first.ready.gateway.clone();
    home.log_in(&first, ["--gateway", &gateway]);
    let file = home.sessions().remove(0);
    drop(first);
    // Made anew, on the same port.
    let second = home
        .builder("b")
        .gateway(gateway.trim_start_matches("http://"))
        .start();
    let kept = fs::read_to_string(&file).unwrap();
    for args in [vec!["users", "list"], vec!["token", "--gateway", &gateway]] {
        let error = home.refused(&args);
        assert!(error.contains("another mesh"), "{args:?}: {error}");
    }
    let error = home.refused(&["users", "list", "--data-dir", &text(&second.data)]);
    assert!(
        error.contains("another mesh") && error.contains("tars login"),
        "{error}"
    );
    // A data directory whose port somebody else has is not logged in to.
    let ready = fs::read_to_string(second.data.join("ready.json")).unwrap();
    let elsewhere = ready.replace(&home.path("b"), &home.path("a"));
    fs::write(home.dir("a").join("ready.json"), elsewhere).unwrap();
    let password = text(&second.ready.admin_password_file);
    let login = ["login", "--username", "admin", "--password-file", &password];
    let error = home.refused(&[&login[..], &["--data-dir", &home.path("a")]].concat());
    assert!(error.contains("another mesh answers"), "{error}");
    // The refused commands left the session as it was; logging out forgets it, and says how.
    assert_eq!(fs::read_to_string(&file).unwrap(), kept);
    let (_, notes) = home.good_with_notes(&["logout", "--gateway", &gateway]);
    assert!(notes.contains("did not end it"), "{notes}");
    assert!(home.sessions().is_empty());
}

#[test]
fn a_session_follows_a_rotation_and_each_mesh_has_one() {
    let home = Home::new();
    let mesh = home.up("a");
    let gateway = mesh.ready.gateway.clone();
    let bare = gateway.trim_start_matches("http://").to_owned();
    home.log_in(&mesh, ["--gateway", &format!("{bare}/")]);
    let file = home.sessions().remove(0);
    let kept = || -> Value { serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap() };
    assert_eq!(kept()["gateway"], *gateway, "one spelling");
    for spelling in [
        &bare,
        &format!("{gateway}//"),
        &gateway.replace("http", "HTTP"),
    ] {
        home.good(&["users", "list", "--gateway", spelling]);
    }
    let localhost = gateway.replace("127.0.0.1", "localhost");
    home.good(&["users", "list", "--gateway", &localhost]);
    assert_eq!(kept()["gateway"], *gateway, "as it was at the login");

    let before = kept()["roots"].clone();
    let rotate = ["certs", "root", "rotate", "--yes", "--timeout", "60"];
    home.good(&[&rotate[..], &["--gateway", &gateway]].concat());
    assert_ne!(kept()["roots"], before);
    assert!(home.good(&["users", "list"]).contains("admin"));

    drop(mesh);

    // Another mesh in the same place: its login takes the place of the old session.
    let second = home.builder("b").gateway(&bare).start();
    home.log_in(&second, ["--gateway", &gateway]);
    assert_eq!(home.sessions().len(), 1);
    assert!(home.good(&["users", "list"]).contains("admin"));
    drop(second);
    let (_, notes) = home.good_with_notes(&["logout", "--gateway", &bare]);
    assert!(notes.contains("did not end it"), "{notes}");
    assert!(home.sessions().is_empty());
}

#[test]
fn a_data_directory_in_use_is_refused_to_other_commands() {
    let desk = Desk::new();
    let data = text(&desk.mesh.data);
    for args in [&["serve", "auth"][..], &["up"], &["certs", "init"]] {
        let error = desk.home.refused(&[args, &["--data-dir", &data]].concat());
        assert!(
            error.contains("is used by another process"),
            "{args:?}: {error}"
        );
    }
}

#[test]
fn a_reader_that_closes_the_pipe_ends_a_command_quietly() {
    let desk = Desk::new();
    let mut listing = desk.tars(&["audit", "list"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let done = listing
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(141));
    assert!(done.stderr.is_empty(), "{done:?}");
}
