//! The disk of a SQLite database gets full: changes are refused, everything else goes on, and so do changes
//! once there is space again.
//!
//! The disk is a small one in memory, in a mount namespace of the process's own. Where the machine does not
//! permit that, the test says so and shows nothing.

use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use tars::rest::Rest;
use tars_runtime::db::{Db, Fetch, Place, Query};
use tars_tests::{
    PASSWORD,
    process::{Running, Up, freeze, thaw},
    reason, refusal,
};
use tokio::time::Instant;

/// Mounts a disk of this size at its first argument, and becomes the program that follows.
const MOUNT: &str = "mount -t tmpfs -o size=16m,mode=700 tmpfs \"$0\" && exec \"$@\"";

/// A program that sees a small disk in place of a folder.
fn with_small_disk(folder: &Path, program: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", MOUNT]);
    command.arg(folder).arg(program);
    command
}

fn is_permitted(folder: &Path) -> bool {
    let mut tried = with_small_disk(folder, "true");
    let tried = tried.stdout(Stdio::null()).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// The small disk, as it is reached from outside of the namespace.
struct Disk(PathBuf);

impl Disk {
    fn of(mesh: &Running, folder: &Path) -> Self {
        let root = format!("/proc/{}/root", mesh.process.id());
        Self(Path::new(&root).join(folder.strip_prefix("/").unwrap()))
    }

    fn fill(&self) {
        let mut filler = File::create(self.0.join("filler")).unwrap();
        let block = [0; 4096];
        while filler.write_all(&block).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }

    /// What SQLite finds wrong with a database, as a crash at this moment would leave it.
    async fn damage(&self, pid: u32) -> String {
        let copy = tempfile::tempdir().unwrap();
        freeze(pid);
        for name in ["auth.db", "auth.db-wal"] {
            fs::copy(self.0.join(name), copy.path().join(name)).unwrap();
        }
        thaw(pid);
        let db = Db::attach(Place::File(copy.path().join("auth.db")))
            .await
            .unwrap();
        let check = Query::new("SELECT integrity_check FROM pragma_integrity_check");
        let mut db = db.read("test.integrity");
        let found = db.optional_value(check, "integrity_check").await;
        found.unwrap().unwrap()
    }
}

/// Users that were asked for, and whether they were created; `None` where the answer was that nobody knows.
type Asked = BTreeMap<String, Option<bool>>;

async fn create_user(rest: &Rest, asked: &mut Asked) -> Option<(u16, Value)> {
    let name = format!("user-{}", asked.len());
    let body = json!({ "username": name, "password": PASSWORD, "roles": ["viewer"] });
    let created = rest.post("/admin/users", body).await;
    let refused = created.is_err().then(|| refusal(created));
    let is_open = |body: &Value| reason(body) == "OUTCOME_UNKNOWN";
    let known = match &refused {
        None => Some(true),
        Some((_, body)) if is_open(body) => None,
        Some(_) => Some(false),
    };
    asked.insert(name, known);
    refused
}

async fn refused_for_want_of_space(rest: &Rest, asked: &mut Asked) {
    for _ in 0..200 {
        if let Some((status, body)) = create_user(rest, asked).await {
            assert_eq!((status, &body["code"]), (503, &json!(14)), "{body}");
            let says = |part: &str| body["message"].as_str().unwrap().contains(part);
            let is_true = says("unavailable") || says("may have been made or not");
            assert!(is_true, "{body}");
            return;
        }
    }
    panic!("the disk never got full");
}

async fn accepted_again(rest: &Rest, asked: &mut Asked) {
    let started = Instant::now();
    while let Some((_, refused)) = create_user(rest, asked).await {
        assert!(started.elapsed() < Duration::from_secs(60), "{refused}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_changes_are_refused_and_nothing_is_lost() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().join("auth");
    tars_certs::secret::create_dir(&folder).unwrap();
    if tars_test_db::is_postgres() || !is_permitted(&folder) {
        eprintln!("skipped: no small disk can be mounted here, or the databases are elsewhere");
        return;
    }
    let tars = with_small_disk(&folder, env!("CARGO_BIN_EXE_tars"));
    let mesh = Up::new(tars, data.path()).unlimited().replicas(1).start();
    let (rest, disk) = (mesh.admin().await, Disk::of(&mesh, &folder));
    let mut asked = Asked::new();
    assert_eq!(create_user(&rest, &mut asked).await, None);

    for _ in 0..2 {
        disk.fill();
        refused_for_want_of_space(&rest, &mut asked).await;
        for _ in 0..5 {
            refused_for_want_of_space(&rest, &mut asked).await;
            rest.get("/admin/users?page_size=200")
                .await
                .expect("reads go on");
        }
        disk.free();
        accepted_again(&rest, &mut asked).await;
    }

    let users = rest.get("/admin/users?page_size=500").await.unwrap();
    let users = users["users"].as_array().unwrap();
    let is_there = |name: &str| users.iter().any(|user| user["username"] == name);
    for (name, created) in &asked {
        let there = is_there(name);
        assert!(
            created.is_none_or(|created| created == there),
            "{name}: {created:?}, {there}"
        );
    }
    assert_eq!(disk.damage(mesh.process.id()).await, "ok");
}
