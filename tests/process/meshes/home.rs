//! A user's machine with the command line, and a mesh that it is logged in to.

use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};
use tars_tests::process::{Running, Up};
use tempfile::TempDir;

/// A user's machine: a home directory of its own.
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A place in the home directory, as an argument.
    pub(crate) fn path(&self, name: &str) -> String {
        text(&self.dir(name))
    }

    pub(crate) fn tars(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tars"));
        command
            .args(args)
            .env("HOME", self.0.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_DATA_HOME")
            .current_dir(self.0.path());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.tars(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    pub(crate) fn good(&self, args: &[&str]) -> String {
        self.good_with_notes(args).0
    }

    /// Both outputs of a command that must succeed.
    pub(crate) fn good_with_notes(&self, args: &[&str]) -> (String, String) {
        let done = self.run(args);
        let notes = stderr(&done);
        assert!(done.status.success(), "{args:?}: {notes}");
        (String::from_utf8(done.stdout).unwrap(), notes)
    }

    /// The error message of a command that must fail.
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert!(!done.status.success(), "{args:?} succeeded");
        stderr(&done)
    }

    /// A mesh on this machine.
    pub(crate) fn up(&self, data: &str) -> Running {
        self.builder(data).start()
    }

    pub(crate) fn builder(&self, data: &str) -> Up {
        Up::new(self.tars(&[]), &self.dir(data)).unlimited()
    }

    pub(crate) fn log_in(&self, mesh: &Running, named: [&str; 2]) {
        let [flag, value] = named;
        let password = text(&mesh.ready.admin_password_file);
        let login = ["login", "--username", "admin", "--password-file", &password];
        self.good(&[&login[..], &[flag, value]].concat());
    }

    pub(crate) fn sessions(&self) -> Vec<PathBuf> {
        let listed = fs::read_dir(self.dir(".config/tars/sessions"));
        listed.map_or_else(|_| Vec::new(), |l| l.map(|e| e.unwrap().path()).collect())
    }
}

/// A machine that is logged in to the one mesh that runs on it; commands name that mesh.
pub(crate) struct Desk {
    pub(crate) home: Home,
    pub(crate) mesh: Running,
}

impl Desk {
    pub(crate) fn new() -> Self {
        Self::of(|up| up)
    }

    /// A mesh whose agents live in an environment.
    pub(crate) fn new_in(environment: &str) -> Self {
        Self::of(|up| up.env("TARS__ORCHESTRATION__ENVIRONMENT", environment))
    }

    fn of(set: impl FnOnce(Up) -> Up) -> Self {
        let home = Home::new();
        let mesh = set(home.builder("a")).start();
        home.log_in(&mesh, ["--gateway", &mesh.ready.gateway]);
        Self { home, mesh }
    }

    /// The arguments that name the mesh.
    pub(crate) fn named(&self) -> [&str; 2] {
        ["--gateway", &self.mesh.ready.gateway]
    }

    fn with<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [args, &self.named()].concat()
    }

    pub(crate) fn tars(&self, args: &[&str]) -> Command {
        self.home.tars(&self.with(args))
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.home.run(&self.with(args))
    }

    pub(crate) fn good(&self, args: &[&str]) -> String {
        self.home.good(&self.with(args))
    }

    pub(crate) fn good_with_notes(&self, args: &[&str]) -> (String, String) {
        self.home.good_with_notes(&self.with(args))
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let args = [args, &["--json"]].concat();
        serde_json::from_str(&self.good(&args)).unwrap()
    }

    pub(crate) fn refused(&self, args: &[&str]) -> String {
        self.home.refused(&self.with(args))
    }
}

pub(crate) fn stderr(done: &Output) -> String {
    String::from_utf8_lossy(&done.stderr).into_owned()
}

pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}
