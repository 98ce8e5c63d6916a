//! The command line with more than one mesh: a command speaks to the mesh that it names, or to none.

#![allow(clippy::unwrap_used)]

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, tcgetattr},
};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};
use tars::app::Ready;
use tars_tests::{
    eventually,
    fleet::{Fleet, Source},
};
use tempfile::TempDir;
use tokio::time::Instant;

/// A mesh of this test's own; ended with it.
struct Up {
    data: PathBuf,
    _process: Started,
    ready: Ready,
}

/// Only what this test started.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A user's machine: a home of its own.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn tars(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tars"));
        command
            .args(args)
            .env("HOME", self.0.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_DATA_HOME")
            .current_dir(self.0.path());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.tars(args).stdin(Stdio::null()).output().unwrap()
    }

    fn good(&self, args: &[&str]) -> String {
        let done = self.run(args);
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{args:?}: {said}");
        String::from_utf8(done.stdout).unwrap()
    }

    /// What a command that must not work says.
    fn refused(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert!(!done.status.success(), "{args:?} worked");
        String::from_utf8(done.stderr).unwrap()
    }

    fn up(&self, data: &Path, gateway: &str) -> Up {
        let file = self.0.path().join("ready.json");
        fs::remove_file(&file).ok();
        let any = "127.0.0.1:0";
        let mut args = vec!["up".to_owned(), "--data-dir".to_owned()];
        args.push(data.display().to_string());
        args.push("--ready-file".to_owned());
        args.push(file.display().to_string());
        for name in [
            "auth",
            "orchestration",
            "automl",
            "hypersync",
            "admin",
            "observe",
        ] {
            args.extend([format!("--{name}-addr"), any.to_owned()]);
        }
        args.extend(["--gateway-addr".to_owned(), gateway.to_owned()]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut command = self.tars(&args);
        command.env("TARS__LIMITS__AUTH_PER_MINUTE", "10000");
        command.env("TARS__LIMITS__PUBLIC_PER_MINUTE", "10000");
        let log = fs::File::create(self.0.path().join("up.log")).unwrap();
        let process = Started(command.stderr(log).spawn().unwrap());
        let started = Instant::now();
        loop {
            if let Ok(ready) = Ready::load(&file) {
                return Up {
                    data: data.to_owned(),
                    _process: process,
                    ready,
                };
            }
            assert!(started.elapsed() < Duration::from_secs(60), "no mesh");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log_in(&self, mesh: &Up, named: [&str; 2]) {
        let password = mesh.ready.admin_password_file.display().to_string();
        let [flag, value] = named;
        self.good(&[
            "login",
            flag,
            value,
            "--username",
            "admin",
            "--password-file",
            &password,
        ]);
    }

    fn sessions(&self) -> Vec<PathBuf> {
        let listed = fs::read_dir(self.0.path().join(".config/tars/sessions"));
        listed.map_or_else(|_| Vec::new(), |l| l.map(|e| e.unwrap().path()).collect())
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn every_command_speaks_to_the_mesh_that_it_names_or_to_none() {
    let home = Home::new();
    let dir = |name: &str| home.0.path().join(name);
    let a = home.up(&dir("a"), "127.0.0.1:0");
    let b = home.up(&dir("b"), "127.0.0.1:0");
    let (in_a, in_b) = (text(&a.data), text(&b.data));
    home.log_in(&a, ["--gateway", &a.ready.gateway]);

    // With a session for A alone, what names B is refused, and A is not touched.
    let before = home.good(&["certs", "revoked", "--data-dir", &in_a, "--json"]);
    let out = text(&dir("x"));
    for args in [
        vec!["users", "list"],
        vec!["audit", "list"],
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
            let said = home.refused(&args);
            assert!(said.contains("no session for"), "{args:?}: {said}");
            assert!(said.contains("tars login"), "{args:?}: {said}");
        }
    }
    assert!(!dir("x").exists(), "no key was written");
    let after = home.good(&["certs", "revoked", "--data-dir", &in_a, "--json"]);
    assert_eq!(before, after);
    let nowhere = home.refused(&["users", "list", "--data-dir", &text(&dir("c"))]);
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

    // Logged in to both, each command is answered by its own; nothing else is guessed.
    home.log_in(&b, ["--data-dir", &in_b]);
    assert_eq!(home.sessions().len(), 2);
    for session in home.sessions() {
        let mode = fs::metadata(&session).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", session.display());
    }
    let issue = |named: [&str; 2], name: &str| {
        let out = text(&dir(name));
        home.good(&["certs", "client", "bot", "--out", &out, named[0], named[1]]);
        fs::read_to_string(dir(name).join("ca.crt")).unwrap()
    };
    let roots = |mesh: &Up| fs::read_to_string(mesh.data.join("ca/bundle.crt")).unwrap();
    let plain = |pem: String| pem.split_whitespace().collect::<String>();
    assert_eq!(
        plain(issue(["--data-dir", &in_b], "by-dir")),
        plain(roots(&b))
    );
    assert_eq!(
        plain(issue(["--gateway", &a.ready.gateway], "by-url")),
        plain(roots(&a))
    );
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
    // A reader that has seen enough ends a command without a word.
    let mut listing = home.tars(&["audit", "list"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let done = listing
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(141));
    assert!(done.stderr.is_empty(), "{done:?}");
    let over = home.refused(&["users", "list", "--data-dir", &in_a]);
    assert!(over.contains("no session for"), "{over}");
}

#[test]
fn a_session_is_not_shown_to_another_mesh_in_the_same_place() {
    let home = Home::new();
    let dir = |name: &str| home.0.path().join(name);
    let first = home.up(&dir("a"), "127.0.0.1:0");
    let gateway = first.ready.gateway.clone();
    home.log_in(&first, ["--gateway", &gateway]);
    let file = home.sessions().remove(0);
    drop(first);
    // Made anew, on the same port.
    let second = home.up(&dir("b"), gateway.trim_start_matches("http://"));
    let kept = fs::read_to_string(&file).unwrap();
    for args in [vec!["users", "list"], vec!["token", "--gateway", &gateway]] {
        let said = home.refused(&args);
        assert!(said.contains("another mesh"), "{args:?}: {said}");
    }
    let said = home.refused(&["users", "list", "--data-dir", &text(&second.data)]);
    assert!(
        said.contains("another mesh") && said.contains("tars login"),
        "{said}"
    );
    // A data directory whose port somebody else has is not logged in to.
    fs::copy(second.data.join("ready.json"), dir("a").join("ready.json")).unwrap();
    let password = text(&second.ready.admin_password_file);
    let args = [
        "login",
        "--data-dir",
        &text(&dir("a")),
        "--username",
        "admin",
        "--password-file",
        &password,
    ];
    let said = home.refused(&args);
    assert!(said.contains("another mesh answers"), "{said}");
    // The refused commands left the session as it was; logging out forgets it, and says how.
    assert_eq!(fs::read_to_string(&file).unwrap(), kept);
    let done = home.run(&["logout", "--gateway", &gateway]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(
        done.status.success() && said.contains("did not end it"),
        "{said}"
    );
    assert!(home.sessions().is_empty());
}

#[test]
fn a_session_follows_the_roots_and_is_one_a_place() {
    let home = Home::new();
    let dir = |name: &str| home.0.path().join(name);
    let mesh = home.up(&dir("a"), "127.0.0.1:0");
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
    home.good(&[
        "users",
        "list",
        "--gateway",
        &gateway.replace("127.0.0.1", "localhost"),
    ]);
    assert_eq!(kept()["gateway"], *gateway, "looking renames nothing");

    let before = kept()["roots"].clone();
    home.good(&[
        "certs",
        "root",
        "rotate",
        "--yes",
        "--gateway",
        &gateway,
        "--timeout",
        "60",
    ]);
    assert_ne!(kept()["roots"], before);
    assert!(home.good(&["users", "list"]).contains("admin"));

    // What is held by a process is not worked on by another.
    let in_a = text(&mesh.data);
    for args in [
        vec!["serve", "auth", "--data-dir", &in_a],
        vec!["up", "--data-dir", &in_a],
        vec!["certs", "init", "--data-dir", &in_a],
    ] {
        let said = home.refused(&args);
        assert!(
            said.contains("is used by another process"),
            "{args:?}: {said}"
        );
    }
    drop(mesh);

    // Another mesh in the same place: its login takes the place of the old session.
    let second = home.up(&dir("b"), &bare);
    home.log_in(&second, ["--gateway", &gateway]);
    assert_eq!(home.sessions().len(), 1);
    assert!(home.good(&["users", "list"]).contains("admin"));
    drop(second);
    let done = home.run(&["logout", "--gateway", &bare]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(
        done.status.success() && said.contains("did not end it"),
        "{said}"
    );
    assert!(home.sessions().is_empty());
}

#[test]
fn passwords_lie_in_private_files_and_sessions_of_old_are_named() {
    let home = Home::new();
    let mesh = home.up(&home.0.path().join("a"), "127.0.0.1:0");
    let old = home.0.path().join(".config/tars/session.json");
    fs::create_dir_all(old.parent().unwrap()).unwrap();
    fs::write(&old, "{}").unwrap();
    let said = home.refused(&["users", "list", "--gateway", &mesh.ready.gateway]);
    assert!(said.contains("earlier version"), "{said}");
    let password = fs::read_to_string(&mesh.ready.admin_password_file).unwrap();
    let file = home.0.path().join("password");
    fs::write(&file, format!("{password}\r\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let args = [
        "login",
        "--gateway",
        &mesh.ready.gateway,
        "--username",
        "admin",
        "--password-file",
        "password",
    ];
    let said = home.refused(&args);
    assert!(said.contains("is readable by everybody"), "{said}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    home.good(&args);
    assert!(!old.exists(), "it went with the login");
}

fn with<'a>(named: [&'a str; 2], args: &[&'a str]) -> Vec<&'a str> {
    [args, &named].concat()
}

fn revoking<'a>(named: [&'a str; 2], args: &[&'a str]) -> Vec<&'a str> {
    with(
        named,
        &[&["certs", "revoke", "--reason", "x"], args].concat(),
    )
}

#[test]
fn what_cannot_be_undone_is_asked_for_and_a_mistyped_name_revokes_nothing() {
    let home = Home::new();
    let mesh = home.up(&home.0.path().join("a"), "127.0.0.1:0");
    let gateway = ["--gateway", mesh.ready.gateway.as_str()];
    home.log_in(&mesh, gateway);
    let nothing = home.good(&with(gateway, &["certs", "revoked", "--json"]));

    let typo = home.refused(&revoking(gateway, &["--id", "/autmol"]));
    assert!(
        typo.contains("nobody holds") && typo.contains("--force"),
        "{typo}"
    );
    let listed = home.good(&with(gateway, &["certs", "list", "--json"]));
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let rows = listed.as_array().unwrap().iter();
    let serial = |id: &str| {
        let mut rows = rows.clone().filter(|r| r["spiffe_id"] == *id);
        rows.next().unwrap()["serial"].as_str().unwrap().to_owned()
    };
    let automl = serial("spiffe://tars.local/automl");
    for args in [
        revoking(gateway, &["--id", "/automl"]),
        revoking(gateway, &["--id", "/autmol", "--force"]),
        revoking(gateway, &["--serial", &automl]),
        with(gateway, &["certs", "root", "rotate"]),
        with(gateway, &["certs", "root", "taint"]),
        with(gateway, &["certs", "root", "remove"]),
        with(gateway, &["users", "disable", "admin"]),
        with(gateway, &["users", "roles", "admin", "viewer"]),
    ] {
        let done = home.run(&args);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(64), "{args:?}: {said}");
        assert!(said.contains("--yes"), "{args:?}: {said}");
    }
    assert_eq!(
        home.good(&with(gateway, &["certs", "revoked", "--json"])),
        nothing
    );
    // Whoever works on a mesh is not locked out of it by one word.
    let operator = home.refused(&revoking(gateway, &["--id", "/user/operator"]));
    for part in ["--yes", "tars certs issue /user/operator --out DIR --force"] {
        assert!(operator.contains(part), "{operator}");
    }
    // What another mesh issued goes on working there, so that nothing would be won here.
    let (other, c3) = (home.0.path().join("other"), home.0.path().join("c3"));
    let (other, file) = (text(&other), text(&c3.join("tls.crt")));
    home.good(&["certs", "init", "--data-dir", &other]);
    let dir = text(&c3);
    home.good(&["certs", "client", "c3", "--data-dir", &other, "--out", &dir]);
    let foreign = home.run(&revoking(gateway, &["--file", &file]));
    let said = String::from_utf8_lossy(&foreign.stderr).into_owned();
    assert_eq!(foreign.status.code(), Some(1), "{said}");
    for part in ["has not issued", "/client/c3", "--force"] {
        assert!(said.contains(part), "{said}");
    }
    // What there is not is said before anything is asked for.
    for args in [
        &["users", "disable", "nobody"][..],
        &["users", "roles", "nobody", "viewer"],
    ] {
        let said = home.refused(&with(gateway, args));
        assert!(said.contains("there is no user"), "{args:?}: {said}");
    }
    let said = home.refused(&with(
        gateway,
        &["users", "create", "x", "--role", "nosuch"],
    ));
    assert!(
        said.contains("nosuch") && said.contains("developer") && !said.contains("password"),
        "{said}"
    );
    assert_eq!(
        home.good(&with(gateway, &["certs", "revoked", "--json"])),
        nothing
    );
    let roots = home.good(&with(gateway, &["certs", "root", "status"]));
    assert!(roots.contains("next: prepare"), "{roots}");
    assert!(
        home.good(&with(gateway, &["users", "list"]))
            .contains("active")
    );

    // A person or an outside client is no part of the mesh, and what is meant is done.
    let bot = text(&home.0.path().join("bot"));
    home.good(&with(gateway, &["certs", "client", "bot", "--out", &bot]));
    home.good(&revoking(gateway, &["--id", "/client/bot"]));
    home.good(&revoking(gateway, &["--id", "/client/later", "--force"]));
    home.good(&revoking(gateway, &["--file", &file, "--force"]));
    let rows = home.good(&with(gateway, &["certs", "revoked"]));
    assert!(
        rows.contains("/client/bot") && rows.contains("/client/later"),
        "{rows}"
    );
    home.good(&revoking(gateway, &["--id", "/automl", "--yes"]));
    let last = home.refused(&with(gateway, &["users", "disable", "admin", "--yes"]));
    assert!(last.contains("the last administrator must stay"), "{last}");
}

#[test]
fn a_stopped_rotation_is_finished_by_what_its_messages_say() {
    let home = Home::new();
    let mesh = home.up(&home.0.path().join("a"), "127.0.0.1:0");
    let gateway = ["--gateway", mesh.ready.gateway.as_str()];
    home.log_in(&mesh, gateway);
    let auth = mesh.ready.auth.trim_start_matches("https://");
    let path = |name: &str| text(&home.0.path().join(name));
    let client = |name: &str| {
        let out = path(name);
        let args = ["certs", "client", name, "--out", &out, "--force"];
        home.good(&with(gateway, &args));
    };
    for name in ["c4", "c4", "c5", "c6"] {
        client(name);
    }
    let said = home.refused(&with(gateway, &["certs", "renew", &path("c5")]));
    assert!(said.contains("--auth HOST:PORT"), "{said}");
    let fleet = path("fleet");
    let said = home.refused(&["certs", "renew", &path("c5"), "--data-dir", &fleet]);
    assert!(
        said.contains("--auth HOST:PORT") && said.contains("--config"),
        "{said}"
    );

    let rotate = ["certs", "root", "rotate", "--yes", "--timeout", "60"];
    let said = home.refused(&with(gateway, &rotate));
    for name in ["c4", "c5", "c6"] {
        let issue = format!("tars certs client {name} --out DIR --force");
        assert_eq!(said.matches(&issue).count(), 1, "{said}");
    }
    // One is issued anew, one renews once it has the roots; the third is left to end.
    client("c4");
    let renew = ["certs", "renew", &path("c5"), "--auth", auth];
    let said = home.refused(&renew);
    let ca = path("c5/ca.crt");
    let bundle = ["certs", "bundle", "--out", &ca, "--force"];
    assert!(
        said.contains(&format!("tars {}", bundle.join(" "))) && !said.contains("--identity"),
        "{said}"
    );
    home.good(&with(gateway, &bundle));
    home.good(&renew);
    let status = home.good(&with(gateway, &["certs", "root", "status"]));
    assert!(
        status.contains("client/c6") && !status.contains("client/c4"),
        "{status}"
    );
    assert!(!status.contains("client/c5"), "{status}");
    let done = home.run(&with(gateway, &[&rotate[..], &["--cut-off"]].concat()));
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
    assert!(
        said.contains("tars certs client c6 --out DIR --force") && !said.contains("client c4"),
        "{said}"
    );
}

/// A terminal of its own for a command: what it shows, and whether it shows what is typed.
struct Terminal(fs::File, OwnedFd);

impl Terminal {
    fn new() -> Self {
        let own = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&own).unwrap();
        unlockpt(&own).unwrap();
        let name = ptsname(&own, Vec::new()).unwrap().into_string().unwrap();
        let theirs = fs::File::options().read(true).write(true).open(name);
        Self(own.into(), theirs.unwrap().into())
    }

    fn start(&self, mut command: Command) -> Started {
        let end = || Stdio::from(self.1.try_clone().unwrap());
        Started(
            command
                .stdin(end())
                .stdout(end())
                .stderr(end())
                .spawn()
                .unwrap(),
        )
    }

    fn echoes(&self) -> bool {
        let modes = tcgetattr(&self.1).unwrap().local_modes;
        modes.contains(LocalModes::ECHO)
    }

    /// Reads until the terminal shows a text.
    fn shows(&mut self, text: &str) -> String {
        let mut shown = Vec::new();
        loop {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            shown.push(byte[0]);
            let so_far = String::from_utf8_lossy(&shown);
            if so_far.ends_with(text) {
                return so_far.into_owned();
            }
        }
    }

    fn types(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }
}

#[test]
fn a_password_is_not_shown_and_the_terminal_is_left_as_it_was() {
    let home = Home::new();
    let mesh = home.up(&home.0.path().join("a"), "127.0.0.1:0");
    let gateway = ["--gateway", mesh.ready.gateway.as_str()];
    home.log_in(&mesh, gateway);
    let create = with(gateway, &["users", "create", "ada", "--role", "viewer"]);
    let login = with(gateway, &["login", "--username", "ada"]);
    let secret = "a long enough secret";
    for (args, answers, code) in [
        (&create, &[("new password: ", "\x03")][..], 130),
        (
            &create,
            &[
                ("new password: ", "a long enough secret\r"),
                ("once more: ", "a long enough other\r"),
            ],
            1,
        ),
        (
            &create,
            &[
                ("new password: ", "a long enough secret\r"),
                ("once more: ", "a long enough secret\r"),
            ],
            0,
        ),
        (&login, &[("password: ", "a long enough secret\r")], 0),
    ] {
        let mut terminal = Terminal::new();
        assert!(terminal.echoes());
        let mut command = terminal.start(home.tars(args));
        let mut shown = String::new();
        for (prompt, typed) in answers {
            shown += &terminal.shows(prompt);
            assert!(!terminal.echoes(), "{prompt}");
            terminal.types(typed);
        }
        let ended = command.0.wait().unwrap();
        assert_eq!(ended.code(), Some(code), "{args:?}: {shown}");
        assert!(terminal.echoes(), "restored");
        terminal.types("over\n");
        shown += &terminal.shows("over");
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn lives_are_told_as_they_are_and_no_key_is_overwritten() {
    let home = Home::new();
    let mesh = home.up(&home.0.path().join("a"), "127.0.0.1:0");
    let gateway = ["--gateway", mesh.ready.gateway.as_str()];
    home.log_in(&mesh, gateway);
    let offline = text(&home.0.path().join("b"));
    home.good(&["certs", "init", "--data-dir", &offline]);
    for named in [gateway, ["--data-dir", &offline]] {
        let out = tempfile::tempdir().unwrap();
        let path = |name: &str| text(&out.path().join(name));
        let (bot, key) = (path("bot"), out.path().join("bot/tls.key"));
        let long = with(
            named,
            &["certs", "client", "bot", "--out", &bot, "--days", "9999"],
        );
        let done = home.run(&long);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{said}");
        assert!(
            said.contains("9999 days were asked for, and it ends in"),
            "{said}"
        );
        let told = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(
            told.contains("/client/bot") && told.contains("ends in"),
            "{told}"
        );

        let first = fs::read(&key).unwrap();
        let again = with(named, &["certs", "client", "bot", "--out", &bot]);
        let said = home.refused(&again);
        assert!(
            said.contains("tls.key exists") && said.contains("--force"),
            "{said}"
        );
        assert_eq!(fs::read(&key).unwrap(), first);
        let done = home.run(&[&again[..], &["--force"]].concat());
        assert!(done.status.success());
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!said.contains("warning"), "nothing was cut: {said}");
        assert_ne!(fs::read(&key).unwrap(), first);

        for (command, file) in [
            (vec!["certs", "join-token", "automl"], "token"),
            (vec!["certs", "bundle"], "ca.crt"),
        ] {
            let file = path(file);
            let args = with(named, &[&command[..], &["--out", &file]].concat());
            home.good(&args);
            let said = home.refused(&args);
            assert!(said.contains("--force"), "{said}");
            home.good(&[&args[..], &["--force"]].concat());
        }
        for bad in [
            vec!["certs", "join-token", "automl", "--ttl", "86401"],
            vec!["certs", "join-token", "automl", "--ttl", "0"],
            vec!["certs", "client", "x", "--days", "0"],
            vec!["certs", "client", "x", "--days", "18446744073709551615"],
        ] {
            home.refused(&with(named, &bad));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_tls_are_told_with_what_to_do() {
    let home = Home::new();
    let mesh = home.up(&home.0.path().join("a"), "127.0.0.1:0");
    let gateway = ["--gateway", mesh.ready.gateway.as_str()];
    home.log_in(&mesh, gateway);
    let at = |url: &str| url.rsplit('/').next().unwrap().to_owned();
    let auth = at(&mesh.ready.auth);
    let path = |name: &str| text(&home.0.path().join(name));
    let (bot, stranger) = (path("bot"), path("stranger"));
    home.good(&[&["certs", "client", "bot", "--out", &bot], &gateway[..]].concat());
    home.good(&["certs", "init", "--data-dir", &path("b")]);
    home.good(&[
        "certs",
        "client",
        "bot",
        "--out",
        &stranger,
        "--data-dir",
        &path("b"),
    ]);
    let probe = |service: &str, target: &str, identity: &str| {
        let args = ["probe", service, "--target", target, "--identity", identity];
        let said = home.refused(&args);
        assert!(said.contains("(cause: "), "the original stays: {said}");
        said
    };
    let free = tars_tests::fleet::free_addr().to_string();
    let half = path("half");
    fs::create_dir(&half).unwrap();
    for (from, name) in [(&bot, "tls.crt"), (&bot, "tls.key"), (&stranger, "ca.crt")] {
        fs::copy(Path::new(from).join(name), Path::new(&half).join(name)).unwrap();
    }
    for (said, means, next) in [
        (
            probe("auth", &at(&mesh.ready.gateway), &bot),
            "does not speak TLS",
            "name the port",
        ),
        (
            probe("auth", &at(&mesh.ready.observe), &bot),
            "does not speak TLS",
            "name the port",
        ),
        (
            probe("automl", &auth, &bot),
            "another service of the mesh",
            "the port is another's",
        ),
        (
            probe("auth", &auth, &stranger),
            "another mesh",
            "tars certs bundle",
        ),
        (probe("auth", &free, &bot), "nothing listens", "tars up"),
        (
            probe("auth", &auth, &half),
            "does not vouch for",
            "tars certs client bot",
        ),
    ] {
        assert!(
            said.contains(means) && said.contains(next),
            "{means}: {said}"
        );
    }
    // The server says this one, and only after the handshake.
    let foreign = path("foreign");
    fs::create_dir(&foreign).unwrap();
    for name in ["tls.crt", "tls.key"] {
        fs::copy(
            Path::new(&stranger).join(name),
            Path::new(&foreign).join(name),
        )
        .unwrap();
    }
    let own = |dir: &str| fs::read_to_string(Path::new(dir).join("ca.crt")).unwrap();
    fs::write(
        Path::new(&foreign).join("ca.crt"),
        own(&bot) + &own(&stranger),
    )
    .unwrap();
    // An alert can be lost when the own side was about to send something.
    eventually("it says that it is of another mesh", || async {
        let said = probe("auth", &auth, &foreign);
        said.contains("does not trust the issuer of") && said.contains("tars certs client bot")
    })
    .await;

    let revoke = ["certs", "revoke", "--id", "/client/bot", "--reason", "lost"];
    home.good(&[&revoke[..], &gateway].concat());
    let revoked =
        |said: &str| said.contains("is revoked") && said.contains("tars certs client bot");
    let refused = |args: &[&str]| String::from_utf8(home.run(args).stderr).unwrap();
    for args in [
        ["probe", "auth", "--target", &auth, "--identity", &bot].as_slice(),
        &["certs", "renew", &bot, "--auth", &auth],
    ] {
        eventually("it says that it is revoked", || async {
            revoked(&refused(args))
        })
        .await;
    }

    // The other way round: HTTP where TLS is spoken.
    let wrong = format!("http://{auth}");
    let said = home.refused(&["users", "list", "--gateway", &wrong]);
    assert!(said.contains("does not speak HTTP"), "{said}");
    let said = home.refused(&["users", "list", "--gateway", &mesh.ready.auth]);
    assert!(said.contains("speaks plain HTTP"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_service_says_so_and_stays_revoked() {
    let home = Home::new();
    let data = home.0.path().join("a");
    let mesh = home.up(&data, "127.0.0.1:0");
    let in_a = text(&data);
    home.log_in(&mesh, ["--data-dir", &in_a]);
    let listed = home.good(&["certs", "list", "--data-dir", &in_a, "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let of = |id: &str| {
        let id = format!("spiffe://tars.local{id}");
        let rows = listed.as_array().unwrap().iter();
        let mut rows = rows.filter(|r| r["spiffe_id"] == *id);
        let row = rows
            .next()
            .unwrap_or_else(|| panic!("{id} is not in {listed}"));
        assert!(rows.next().is_none(), "{id} once");
        row.clone()
    };
    for id in [
        "/auth",
        "/orchestration",
        "/automl",
        "/hypersync",
        "/gateway",
        "/user/operator",
    ] {
        let row = of(id);
        assert_eq!(row["source"], "authority", "{row}");
        assert_eq!(row["revoked"], false, "{row}");
        assert!(row["not_after"].is_string(), "{row}");
    }
    assert!(
        home.good(&["probe", "automl", "--data-dir", &in_a])
            .contains("serving")
    );
    let serial = of("/automl")["serial"].as_str().unwrap().to_owned();
    home.good(&[
        "certs",
        "revoke",
        "--serial",
        &serial,
        "--yes",
        "--reason",
        "stolen",
        "--data-dir",
        &in_a,
    ]);
    eventually("the probe says so", || async {
        let probe = home.run(&["probe", "automl", "--data-dir", &in_a]);
        !probe.status.success() && String::from_utf8_lossy(&probe.stderr).contains("revoked")
    })
    .await;
    let admin = tars::rest::Rest::new(&mesh.ready.admin);
    let page = admin.get("/certs").await.unwrap();
    let rows = page["certificates"].as_array().unwrap();
    for row in rows {
        assert_eq!(row["revoked"], row["service"] == "automl", "{row}");
    }
    let observe = tars::rest::Rest::new(&mesh.ready.observe);
    assert!(observe.get("/readyz").await.is_err(), "not ready");
    // A change of the roots renews everybody else, and waits for nobody that is cut off.
    let rotated = home.run(&[
        "certs",
        "root",
        "rotate",
        "--yes",
        "--data-dir",
        &in_a,
        "--timeout",
        "60",
    ]);
    let said = String::from_utf8_lossy(&rotated.stderr).into_owned();
    assert!(rotated.status.success(), "{said}");
    let page = admin.get("/certs").await.unwrap();
    let rows = page["certificates"].as_array().unwrap();
    let automl = rows.iter().find(|r| r["service"] == "automl").unwrap();
    assert_eq!(
        (&automl["revoked"], &automl["serial"]),
        (&true.into(), &serial.into())
    );
    let log = fs::read_to_string(home.0.path().join("up.log")).unwrap();
    let told = log
        .matches("this process's certificate is revoked; peers reject it")
        .count();
    assert_eq!(told, 1, "{log}");
    assert!(
        log.contains("restart the process"),
        "it says what to do: {log}"
    );
    for name in ["auth", "gateway", "admin", "observe"] {
        let line = log
            .lines()
            .find(|l| l.contains("serving") && l.contains(name));
        assert!(
            line.is_some_and(|l| l.contains("127.0.0.1:")),
            "{name}: {log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_goes_on_without_whoever_is_revoked_or_gone() {
    let env = [("TARS__CERTIFICATES__DEPARTED_AFTER_SECONDS", "6")];
    let binary = Path::new(env!("CARGO_BIN_EXE_tars"));
    let mut fleet = Fleet::start(binary, Source::Join, &env).await;
    let admin = fleet.admin().await;
    let log = |fleet: &Fleet| fs::read_to_string(fleet.log("automl")).unwrap();
    let id = json!({ "spiffe_id": "spiffe://tars.local/automl", "reason": "stolen" });
    admin.post("/admin/certificates/revoke", id).await.unwrap();
    // It is told nothing any more; that nobody lets it in tells it.
    eventually("it knows that it is revoked", || async {
        fleet.certificate("automl").await["revoked"] == true
    })
    .await;
    assert!(!fleet.is_ready("automl").await);
    let told = log(&fleet);
    assert_eq!(told.matches("peers reject it").count(), 1, "{told}");
    assert!(told.contains("tars certs join-token"), "what to do: {told}");

    // What it kept brings it back no more; a new token does.
    fleet.kill("automl");
    fleet.spawn("automl");
    eventually("it does not start", || async {
        log(&fleet).contains("only a new join token gives another")
    })
    .await;
    let made = admin
        .post("/admin/join-tokens", json!({ "path": "/automl" }))
        .await
        .unwrap();
    let token = made["token"].as_str().unwrap();
    tars_certs::secret::write(&fleet.data().join("automl.token"), token.as_bytes()).unwrap();
    fleet.spawn("automl");
    eventually("it is back", || async { fleet.is_ready("automl").await }).await;

    // The commands find it by the configuration that it runs with.
    let home = Home::new();
    let config = home.0.path().join("fleet.toml");
    let places = format!(
        "[data]\ndir = {:?}\n[listen]\ngateway = \"{}\"\n[connect]\nauth = \"{}\"\n",
        fleet.data(),
        fleet.addr("gateway"),
        fleet.addr("auth"),
    );
    fs::write(&config, places).unwrap();
    let (config, data) = (text(&config), text(fleet.data()));
    let password = text(&fleet.data().join("admin-password"));
    let login = ["login", "--username", "admin", "--password-file", &password];
    let said = home.refused(&[&login[..], &["--data-dir", &data]].concat());
    assert!(said.contains("--config"), "{said}");
    home.good(&[&login[..], &["--config", &config]].concat());
    assert!(
        home.good(&["users", "list", "--config", &config])
            .contains("admin")
    );
    assert!(
        home.good(&["probe", "auth", "--config", &config])
            .contains("serving")
    );
    let said = home.refused(&[
        "probe",
        "auth",
        "--config",
        &config,
        "--identity",
        "nowhere",
    ]);
    assert!(
        said.contains("nowhere/tls.crt") && said.contains("--identity"),
        "{said}"
    );
    let said = home.refused(&["up", "--data-dir", &data]);
    assert!(said.contains("tars serve"), "who has the directory: {said}");

    // A process that is gone holds back nothing, and is named.
    fleet.kill("hypersync");
    let mut named = String::new();
    for step in ["PREPARE", "ACTIVATE", "TAINT", "REMOVE"] {
        eventually(&format!("everybody is ready to {step}"), || async {
            let status = admin.get("/admin/roots").await.unwrap();
            status["waiting_for"].as_array().unwrap().is_empty()
        })
        .await;
        let status = admin.get("/admin/roots").await.unwrap();
        named.push_str(&status["departed"].to_string());
        let body = json!({ "step": format!("ROOT_STEP_{step}"), "cut_off": true });
        admin.post("/admin/roots/step", body).await.unwrap();
    }
    assert!(named.contains("spiffe://tars.local/hypersync"), "{named}");
    assert!(!named.contains("orchestration"), "{named}");
    eventually("the rest goes on", || async {
        fleet.is_ready("automl").await
    })
    .await;
}
