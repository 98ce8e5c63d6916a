//! A command speaks to the mesh that it names, or to none.

use crate::home::{Home, text};
use std::{fs, os::unix::fs::PermissionsExt};
use tars_tests::process::Running;

#[test]
fn a_command_is_refused_rather_than_sent_to_another_mesh() {
    let home = Home::new();
    let (a, b) = (home.up("a"), home.up("b"));
    let (in_a, in_b) = (text(&a.data), text(&b.data));
    home.log_in(&a, ["--gateway", &a.ready.gateway]);

    // With a session for A alone, what names B is refused, and A is not touched.
    let before = home.good(&["certs", "revoked", "--data-dir", &in_a, "--json"]);
    let out = home.path("x");
    for args in [
        vec!["users", "list"],
        vec!["audit", "list"],
        vec!["usage", "show"],
        vec!["usage", "export"],
        vec!["studies", "list"],
        vec!["studies", "create"],
        vec!["proposals", "list"],
        vec!["token"],
        vec!["logout"],
        vec!["certs", "list"],
        vec!["certs", "revoked"],
        vec!["certs", "issue", "/client/x", "--out", &out],
        vec!["certs", "client", "x", "--out", &out],
        vec!["certs", "join-token", "automl"],
        vec!["certs", "bundle"],
        vec!["certs", "revoke", "--id", "/client/x", "--reason", "x"],
        vec!["certs", "root", "status"],
        vec!["certs", "root", "rotate"],
    ] {
        for named in [["--data-dir", &in_b], ["--gateway", &b.ready.gateway]] {
            let mut args = args.clone();
            args.extend(named);
            let error = home.refused(&args);
            assert!(error.contains("no session for"), "{args:?}: {error}");
            assert!(error.contains("tars login"), "{args:?}: {error}");
        }
    }
    assert!(!home.dir("x").exists(), "no key was written");
    let after = home.good(&["certs", "revoked", "--data-dir", &in_a, "--json"]);
    assert_eq!(before, after);
    let nowhere = home.refused(&["users", "list", "--data-dir", &home.path("c")]);
    assert!(nowhere.contains("there is no mesh in"), "{nowhere}");
    let both = home.refused(&[
        "users",
        "list",
        "--data-dir",
        &in_a,
        "--gateway",
        &b.ready.gateway,
    ]);
    assert!(both.contains("both name a mesh"), "{both}");
    let offline = home.refused(&["certs", "init", "--gateway", &a.ready.gateway]);
    assert!(offline.contains("asks no gateway"), "{offline}");
}

#[test]
fn with_two_sessions_a_command_needs_the_name_of_a_mesh() {
    let home = Home::new();
    let (a, b) = (home.up("a"), home.up("b"));
    let (in_a, in_b) = (text(&a.data), text(&b.data));
    home.log_in(&a, ["--gateway", &a.ready.gateway]);
    home.log_in(&b, ["--data-dir", &in_b]);
    assert_eq!(home.sessions().len(), 2);
    for session in home.sessions() {
        let mode = fs::metadata(&session).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", session.display());
    }
    let plain = |pem: String| pem.split_whitespace().collect::<String>();
    let issue = |named: [&str; 2], name: &str| {
        let out = home.path(name);
        home.good(&["certs", "client", "bot", "--out", &out, named[0], named[1]]);
        plain(fs::read_to_string(home.dir(name).join("ca.crt")).unwrap())
    };
    let roots = |mesh: &Running| {
        let bundle = mesh.first_data().join("ca/bundle.crt");
        plain(fs::read_to_string(bundle).unwrap())
    };
    let by_dir = issue(["--data-dir", &in_b], "by-dir");
    assert_eq!(by_dir, roots(&b));
    let by_url = issue(["--gateway", &a.ready.gateway], "by-url");
    assert_eq!(by_url, roots(&a));
    let mut by_env = home.tars(&["token"]);
    let by_env = by_env.env("TARS__DATA__DIR", &in_b).output().unwrap();
    let token_b = home.good(&["token", "--gateway", &b.ready.gateway]);
    assert_eq!(String::from_utf8(by_env.stdout).unwrap(), token_b);
    let token_a = home.good(&["token", "--data-dir", &in_a]);
    assert_ne!(token_a, token_b);
    let which = home.refused(&["users", "list"]);
    for part in [
        a.ready.gateway.as_str(),
        b.ready.gateway.as_str(),
        "--gateway",
        "--data-dir",
    ] {
        assert!(which.contains(part), "{which}");
    }

    // Logged out of one, the other goes on; the one that is left needs no name.
    home.good(&["logout", "--data-dir", &in_a]);
    assert_eq!(home.sessions().len(), 1);
    assert!(home.good(&["users", "list"]).contains("admin"));
    let over = home.refused(&["users", "list", "--data-dir", &in_a]);
    assert!(over.contains("no session for"), "{over}");
}
