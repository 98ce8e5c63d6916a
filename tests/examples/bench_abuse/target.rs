//! The real binary as it is by default, but for the rates of logins and of callers: they would end
//! some attacks before they reach the bounds that are measured.

use crate::Failure;
use serde_json::json;
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tars::{app::Ready, rest::Rest};
use tars_certs::{Authority, Identity, ca::Lifetimes};
use tars_runtime::clock::Clock;
use tars_tests::{PASSWORD, fleet::free_ports, issue, memory};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// What is set wide. The flood guard by address stays: the honest client keeps below it.
pub(crate) const LIMITS: &[(&str, &str)] = &[
    ("TARS__LIMITS__AUTH_PER_MINUTE", "100000"),
    ("TARS__LIMITS__PUBLIC_PER_MINUTE", "100000"),
    ("TARS__LIMITS__USER_PER_MINUTE", "10000000"),
    ("TARS__LIMITS__IDENTITY_PER_MINUTE", "100000"),
];

/// The mesh's process, ended with the run.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

pub(crate) struct Target {
    process: Running,
    pub(crate) ready: Ready,
    dir: TempDir,
    /// Tokens of two viewers.
    pub(crate) honest: String,
    pub(crate) attacker: String,
    /// A study that has not ended, to be watched.
    pub(crate) study: String,
}

impl Target {
    pub(crate) async fn start(binary: &Path) -> Result<Self, Failure> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("bench-ready.json");
        let mut command = Command::new(binary);
        command.arg("up").arg("--data-dir").arg(dir.path());
        command.arg("--ready-file").arg(&file);
        command.args(free_ports());
        command.envs(LIMITS.iter().copied());
        command.env("TARS__LOG__LEVEL", "warn");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let process = Running(command.spawn()?);
        let ready = written(&file).await?;
        let rest = Rest::new(&ready.gateway);
        let password = std::fs::read_to_string(&ready.admin_password_file)?;
        let admin = rest.login(&ready.admin_user, &password).await?;
        Ok(Self {
            honest: viewer(&rest, &admin, "honest").await?,
            attacker: viewer(&rest, &admin, "attacker").await?,
            study: study(&admin).await?,
            process,
            ready,
            dir,
        })
    }

    /// An identity of this mesh.
    pub(crate) fn identity(&self, path: &str) -> Result<Identity, Failure> {
        let ca = self.dir.path().join("ca");
        let now = Clock::system().now();
        let authority = Authority::open(&ca, &self.ready.trust_domain, Lifetimes::default(), now)?;
        Ok(issue(&authority, path))
    }

    /// What is resident of the process, in MiB.
    pub(crate) fn resident_mb(&self) -> Result<f64, Failure> {
        Ok(memory::resident(self.process.0.id())? as f64 / f64::from(1 << 20))
    }
}

async fn written(file: &Path) -> Result<Ready, Failure> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match Ready::load(file) {
            Ok(ready) => return Ok(ready),
            Err(e) if Instant::now() > end => return Err(format!("never ready: {e}").into()),
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Makes a viewer and returns a token of theirs.
async fn viewer(rest: &Rest, admin: &Rest, name: &str) -> Result<String, Failure> {
    let user = json!({ "username": name, "password": PASSWORD, "roles": ["viewer"] });
    admin.post("/admin/users", user).await?;
    let asked = json!({ "username": name, "password": PASSWORD });
    let answer = rest.post("/auth/login", asked).await?;
    Ok(answer["access_token"]
        .as_str()
        .ok_or("no token")?
        .to_owned())
}

/// A study that nobody runs.
async fn study(admin: &Rest) -> Result<String, Failure> {
    let space = json!([{ "name": "x", "float": { "low": 0.0, "high": 1.0 } }]);
    let made = admin
        .post(
            "/api/v1/studies",
            json!({ "search_space": space, "n_trials": 5 }),
        )
        .await?;
    let id = made["study"]["study_id"].as_str();
    Ok(id
        .ok_or_else(|| format!("no study was made: {made}"))?
        .to_owned())
}
