//! Certificates by hand: issued, listed, revoked, and taken through a rotation of the roots.

use crate::home::{Desk, Home, stderr, text};
use serde_json::Value;
use std::{fs, process::Stdio};

fn revoking<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["certs", "revoke", "--reason", "x"], args].concat()
}

/// The serial number of an identity's first row in the list of certificates.
fn serial(desk: &Desk, path: &str) -> String {
    let listed = desk.json(&["certs", "list", "--id", path]);
    listed[0]["serial"].as_str().unwrap().to_owned()
}

#[test]
fn a_command_that_cannot_be_undone_needs_yes_without_a_terminal() {
    let desk = Desk::new();
    let nothing = desk.json(&["certs", "revoked"]);
    let automl = serial(&desk, "/automl");
    for args in [
        revoking(&["--id", "/automl"]),
        revoking(&["--id", "/autmol", "--force"]),
        revoking(&["--serial", &automl]),
        vec!["certs", "root", "rotate"],
        vec!["certs", "root", "taint"],
        vec!["certs", "root", "remove"],
        vec!["users", "disable", "admin"],
        vec!["users", "roles", "admin", "viewer"],
    ] {
        let done = desk.run(&args);
        let error = stderr(&done);
        assert_eq!(done.status.code(), Some(64), "{args:?}: {error}");
        assert!(error.contains("--yes"), "{args:?}: {error}");
    }
    // Revoking the operator locks out whoever works on the mesh.
    let error = desk.refused(&revoking(&["--id", "/user/operator"]));
    for part in ["--yes", "tars certs issue /user/operator --out DIR --force"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(desk.json(&["certs", "revoked"]), nothing);
    let roots = desk.good(&["certs", "root", "status"]);
    assert!(roots.contains("next: prepare"), "{roots}");
    assert!(desk.good(&["users", "list"]).contains("active"));
}

#[test]
fn a_mistyped_name_is_refused_before_any_question() {
    let desk = Desk::new();
    let nothing = desk.json(&["certs", "revoked"]);
    let error = desk.refused(&revoking(&["--id", "/autmol"]));
    assert!(
        error.contains("nobody holds") && error.contains("--force"),
        "{error}"
    );
    for args in [
        &["users", "disable", "nobody"][..],
        &["users", "roles", "nobody", "viewer"],
    ] {
        let error = desk.refused(args);
        assert!(error.contains("there is no user"), "{args:?}: {error}");
    }
    // An unknown role is refused before a password is asked for.
    let error = desk.refused(&["users", "create", "x", "--role", "nosuch"]);
    assert!(
        error.contains("nosuch") && error.contains("developer"),
        "{error}"
    );
    assert!(!error.contains("password"), "{error}");
    // A certificate of another mesh would go on working there.
    let file = foreign_certificate(&desk);
    let done = desk.run(&revoking(&["--file", &file]));
    let error = stderr(&done);
    assert_eq!(done.status.code(), Some(1), "{error}");
    for part in ["has not issued", "/client/c3", "--force"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(desk.json(&["certs", "revoked"]), nothing);
}

/// A certificate for `/client/c3` that another authority has issued; returns its file.
fn foreign_certificate(desk: &Desk) -> String {
    let (home, other, c3) = (&desk.home, desk.home.path("other"), desk.home.path("c3"));
    home.good(&["certs", "init", "--data-dir", &other]);
    home.good(&["certs", "client", "c3", "--data-dir", &other, "--out", &c3]);
    home.path("c3/tls.crt")
}

#[test]
fn a_revoked_certificate_leaves_the_list_and_is_in_the_whole_one() {
    let desk = Desk::new();
    let bot = desk.home.path("bot");
    desk.good(&["certs", "client", "bot", "--out", &bot]);
    let (listed, _) = desk.good_with_notes(&["certs", "list"]);
    assert!(
        listed.contains("/client/bot") && listed.contains("valid"),
        "{listed}"
    );
    // An outside client is no part of the mesh: nothing is asked.
    desk.good(&revoking(&["--id", "/client/bot"]));
    desk.good(&revoking(&["--id", "/client/later", "--force"]));
    let file = foreign_certificate(&desk);
    desk.good(&revoking(&["--file", &file, "--force"]));
    let revoked = desk.good(&["certs", "revoked"]);
    assert!(
        revoked.contains("/client/bot") && revoked.contains("/client/later"),
        "{revoked}"
    );

    let (listed, notes) = desk.good_with_notes(&["certs", "list"]);
    assert!(!listed.contains("/client/bot"), "{listed}");
    assert!(notes.contains("--all"), "{notes}");
    let all = desk.good(&["certs", "list", "--all"]);
    let row = all.lines().find(|l| l.contains("/client/bot")).unwrap();
    assert!(row.ends_with("REVOKED"), "{row}");
    let rows = |args: &[&str]| desk.json(args).as_array().map_or(0, Vec::len);
    assert_eq!(rows(&["certs", "list", "--id", "/client/bot"]), 0);
    assert_eq!(rows(&["certs", "list", "--id", "/client/bot", "--all"]), 1);

    desk.good(&revoking(&["--id", "/automl", "--yes"]));
    let error = desk.refused(&["users", "disable", "admin", "--yes"]);
    assert!(
        error.contains("the last enabled administrator cannot be disabled"),
        "{error}"
    );
}

#[test]
fn a_stopped_rotation_is_finished_by_what_its_messages_say() {
    let desk = Desk::new();
    let home = &desk.home;
    let auth = desk.mesh.ready.auth.trim_start_matches("https://");
    let client = |name: &str| {
        let out = home.path(name);
        desk.good(&["certs", "client", name, "--out", &out, "--force"]);
    };
    for name in ["c4", "c4", "c5", "c6"] {
        client(name);
    }
    let (c5, fleet) = (home.path("c5"), home.path("fleet"));
    let error = desk.refused(&["certs", "renew", &c5]);
    assert!(error.contains("--auth HOST:PORT"), "{error}");
    let error = home.refused(&["certs", "renew", &c5, "--data-dir", &fleet]);
    assert!(
        error.contains("--auth HOST:PORT") && error.contains("--config"),
        "{error}"
    );

    let rotate = ["certs", "root", "rotate", "--yes", "--timeout", "60"];
    let error = desk.refused(&rotate);
    for name in ["c4", "c5", "c6"] {
        let issue = format!("tars certs client {name} --out DIR --force");
        assert_eq!(error.matches(&issue).count(), 1, "{error}");
    }
    // One is issued anew, one renews once it has the roots; the third is left to end.
    client("c4");
    let renew = ["certs", "renew", &c5, "--auth", auth];
    let error = home.refused(&renew);
    let ca = home.path("c5/ca.crt");
    let bundle = ["certs", "bundle", "--out", &ca, "--force"];
    assert!(
        error.contains(&format!("tars {}", bundle.join(" "))),
        "{error}"
    );
    assert!(!error.contains("--identity"), "{error}");
    desk.good(&bundle);
    home.good(&renew);
    let status = desk.good(&["certs", "root", "status"]);
    for (name, is_below) in [("c4", false), ("c5", false), ("c6", true)] {
        assert_eq!(
            status.contains(&format!("client/{name}")),
            is_below,
            "{status}"
        );
    }
    let (_, notes) = desk.good_with_notes(&[&rotate[..], &["--cut-off"]].concat());
    assert!(
        notes.contains("tars certs client c6 --out DIR --force"),
        "{notes}"
    );
    assert!(!notes.contains("client c4"), "{notes}");
    // What the removed root signed is not shown as if it were alive.
    assert!(!desk.good(&["certs", "list"]).contains("/client/c6"));
    let all = desk.good(&["certs", "list", "--id", "/client/c6", "--all"]);
    assert!(all.contains("ROOT REMOVED"), "{all}");
}

/// The ways in which a command names an authority: a mesh that runs, and files at hand.
fn authorities(desk: &Desk) -> [Vec<String>; 2] {
    let offline = desk.home.path("b");
    desk.home.good(&["certs", "init", "--data-dir", &offline]);
    let owned = |named: [&str; 2]| named.map(str::to_owned).to_vec();
    [owned(desk.named()), owned(["--data-dir", &offline])]
}

fn with<'a>(named: &'a [String], args: &[&'a str]) -> Vec<&'a str> {
    let named = named.iter().map(String::as_str);
    args.iter().copied().chain(named).collect()
}

#[test]
fn a_life_that_is_cut_is_reported_as_it_is() {
    let desk = Desk::new();
    let home = &desk.home;
    for named in authorities(&desk) {
        let out = tempfile::tempdir().unwrap();
        let bot = text(&out.path().join("bot"));
        let client = ["certs", "client", "bot", "--out", &bot, "--days", "9999"];
        let (issued, notes) = home.good_with_notes(&with(&named, &client));
        let warning = "9999 days were asked for, and it ends in";
        assert!(notes.contains(warning), "{notes}");
        assert!(
            issued.contains("/client/bot") && issued.contains("ends in"),
            "{issued}"
        );
        let client = ["certs", "client", "bot", "--out", &bot, "--force"];
        let (_, notes) = home.good_with_notes(&with(&named, &client));
        assert!(!notes.contains("warning"), "nothing was cut: {notes}");
        for bad in [
            ["certs", "join-token", "automl", "--ttl", "86401"],
            ["certs", "join-token", "automl", "--ttl", "0"],
            ["certs", "client", "x", "--days", "0"],
            ["certs", "client", "x", "--days", "18446744073709551615"],
        ] {
            home.refused(&with(&named, &bad));
        }
    }
}

#[test]
fn nothing_that_exists_is_overwritten_without_force() {
    let desk = Desk::new();
    let home = &desk.home;
    for named in authorities(&desk) {
        let out = tempfile::tempdir().unwrap();
        let path = |name: &str| text(&out.path().join(name));
        let key = || fs::read(out.path().join("bot/tls.key")).unwrap();
        let (bot, token, ca) = (path("bot"), path("token"), path("ca.crt"));
        let client = with(&named, &["certs", "client", "bot", "--out", &bot]);
        home.good(&client);
        let first = key();
        let error = home.refused(&client);
        assert!(error.contains("tls.key exists"), "{error}");
        assert_eq!(key(), first);
        for command in [
            &["certs", "join-token", "automl", "--out", &token][..],
            &["certs", "bundle", "--out", &ca],
        ] {
            home.good(&with(&named, command));
        }
        for command in [
            &["certs", "client", "bot", "--out", &bot][..],
            &["certs", "join-token", "automl", "--out", &token],
            &["certs", "bundle", "--out", &ca],
        ] {
            let args = with(&named, command);
            let error = home.refused(&args);
            assert!(error.contains("--force"), "{error}");
            home.good(&[&args[..], &["--force"]].concat());
        }
        assert_ne!(key(), first);
    }
}

#[test]
fn a_listed_certificate_says_where_it_came_from() {
    let desk = Desk::new();
    let listed = desk.json(&["certs", "list"]);
    let rows = listed.as_array().unwrap();
    for path in [
        "/auth",
        "/orchestration",
        "/automl",
        "/hypersync",
        "/gateway",
        "/user/operator",
    ] {
        let id = format!("spiffe://tars.local{path}");
        let of: Vec<&Value> = rows.iter().filter(|r| r["spiffe_id"] == *id).collect();
        assert_eq!(of.len(), tars_tests::replicas(), "{id}: {listed}");
        let row = of[0];
        assert_eq!(row["source"], "authority", "{row}");
        assert_eq!(row["revoked"], false, "{row}");
        assert!(row["not_after"].is_string(), "{row}");
    }
}

#[test]
#[ignore = "needs PostgreSQL: cargo xtask test"]
fn data_directories_on_one_database_have_one_authority() {
    let home = Home::new();
    let seal = home.path("seal.key");
    let run = |args: &[&str], seal: Option<&str>| {
        let mut command = home.tars(args);
        command.envs(tars_test_db::postgres_variables(&home.dir("")));
        command.envs(seal.map(|path| ("TARS__CREDENTIALS__SEAL_KEY_FILE", path)));
        command.stdin(Stdio::null()).output().unwrap()
    };
    let [a, b, c, out] = ["a", "b", "c", "out"].map(|name| home.path(name));
    for data in [&a, &b] {
        let made = run(&["certs", "init", "--data-dir", data], Some(&seal));
        assert!(made.status.success(), "{}", stderr(&made));
    }
    let bundle = |data: &str| {
        let shown = run(&["certs", "bundle", "--data-dir", data], Some(&seal));
        assert!(shown.status.success(), "{}", stderr(&shown));
        shown.stdout
    };
    assert_eq!(bundle(&a), bundle(&b));
    let issue = ["certs", "client", "x", "--data-dir", &b, "--out", &out];
    let issued = run(&issue, Some(&seal));
    assert!(issued.status.success(), "{}", stderr(&issued));
    assert_eq!(fs::read(home.dir("out/ca.crt")).unwrap(), bundle(&a));
    // Without the key of the database there is no authority.
    let refused = run(&["certs", "init", "--data-dir", &c], None);
    assert!(!refused.status.success());
    let text = stderr(&refused);
    assert!(text.contains("credentials.seal_key_file"), "{text}");
    assert!(!home.dir("c/ca").exists(), "none is made");
    // A directory that has another one keeps it.
    home.good(&["certs", "init", "--data-dir", &c]);
    let before = home.good(&["certs", "bundle", "--data-dir", &c]);
    let refused = run(&["certs", "bundle", "--data-dir", &c], Some(&seal));
    assert!(!refused.status.success());
    assert!(
        stderr(&refused).contains("move it away"),
        "{}",
        stderr(&refused)
    );
    assert_eq!(home.good(&["certs", "bundle", "--data-dir", &c]), before);
}
