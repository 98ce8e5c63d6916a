use super::{archive, files, *};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    time::Duration,
};
use tars_runtime::{
    config::{Config, Data},
    db::{Db, Isolation, Query},
};
use tempfile::TempDir;

/// A data directory with two databases, keys, and blobs.
struct Rig {
    dir: TempDir,
}

fn put(path: &Path, content: &[u8], mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

impl Rig {
    async fn new() -> Self {
        let rig = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for service in [Service::Auth, Service::Orchestration] {
            let migrations = crate::app::migrations(service).unwrap();
            let file = rig.data().join(database_file(service));
            let db = Db::open(&file, migrations).await.unwrap();
            let mut tx = db.write("test", Isolation::Exclusive).await.unwrap();
            let insert = "INSERT INTO audit_outbox (position, record) VALUES (7, 'seven')";
            let done = tx.execute(Query::new(insert)).await.unwrap();
            done.one().unwrap();
            tx.commit().await.unwrap();
            db.close().await;
        }
        put(&rig.data().join("ca/ca.key"), b"a private key", 0o600);
        put(&rig.data().join("ca/ca.crt"), b"a certificate", 0o644);
        put(
            &rig.data().join("orchestration/blobs/abc"),
            &[7; 200_000],
            0o600,
        );
        for name in ["lock", "ready.json", "auth/lock", "ca/.ca.json.1.tmp"] {
            put(&rig.data().join(name), b"of a process", 0o600);
        }
        rig
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("backup.tar")
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("restored")
    }

    async fn take(&self) -> Result<Manifest, BackupError> {
        let taken = take(
            &config(&self.data()),
            &self.file(),
            &Stop::default(),
            |_| {},
        )
        .await;
        taken.map(|taken| taken.manifest)
    }

    async fn restore(&self, file: &Path) -> Result<Manifest, BackupError> {
        restore(&config(&self.target()), file, &Stop::default(), |_| {}).await
    }

    /// Restores what must be refused, and checks that nothing is left of it.
    async fn refused(&self, content: &[u8]) -> BackupError {
        let file = self.dir.path().join("bad.tar");
        fs::write(&file, content).unwrap();
        let refused = self.restore(&file).await.unwrap_err();
        assert!(!self.target().exists(), "{refused}");
        let left = self.names();
        assert!(!left.iter().any(|name| name.starts_with(".tars")));
        refused
    }

    /// What there is beside the data directory.
    fn names(&self) -> Vec<String> {
        names(self.dir.path())
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn config(data: &Path) -> Config {
    let dir = data.to_owned();
    Config {
        data: Data { dir },
        ..Config::default()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn what_is_backed_up_is_restored_with_its_modes() {
    let rig = Rig::new().await;
    let taken = rig.take().await.unwrap();
    assert_eq!(mode(&rig.file()), 0o600);
    let restored = rig.restore(&rig.file()).await.unwrap();
    assert_eq!(taken, restored);
    let services: Vec<_> = restored.services.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(services, ["auth", "orchestration"]);
    for (path, expected) in [
        ("ca/ca.key", 0o600),
        ("ca/ca.crt", 0o644),
        ("orchestration/blobs/abc", 0o600),
    ] {
        let (before, after) = (rig.data().join(path), rig.target().join(path));
        assert_eq!(
            fs::read(before).unwrap(),
            fs::read(&after).unwrap(),
            "{path}"
        );
        assert_eq!(mode(&after), expected, "{path}");
    }
    assert_eq!(mode(&rig.target()), 0o700);
    for name in ["lock", "ready.json", "auth/lock", "ca/.ca.json.1.tmp"] {
        assert!(!rig.target().join(name).exists(), "{name}");
    }
    for service in [Service::Auth, Service::Orchestration] {
        let db = rig.target().join(database_file(service));
        let db = Db::open(&db, crate::app::migrations(service).unwrap())
            .await
            .unwrap();
        let tables = db.tables().await.unwrap();
        let outbox = tables.iter().find(|t| t.name == "audit_outbox").unwrap();
        assert_eq!(outbox.rows, 1);
        db.close().await;
    }
}

#[tokio::test]
async fn a_database_in_use_is_backed_up_as_it_was_last_committed() {
    let rig = Rig::new().await;
    let migrations = crate::app::migrations(Service::Auth).unwrap();
    let file = rig.data().join(database_file(Service::Auth));
    let db = Db::open(&file, migrations).await.unwrap();
    let mut tx = db.write("test", Isolation::Exclusive).await.unwrap();
    let insert = "INSERT INTO audit_outbox (position, record) VALUES (8, 'eight')";
    tx.execute(Query::new(insert)).await.unwrap().one().unwrap();
    let taken = rig.take().await.unwrap();
    assert_eq!(taken.services[0].tables["audit_outbox"], 1);
    tx.commit().await.unwrap();
    fs::remove_file(rig.file()).unwrap();
    let taken = rig.take().await.unwrap();
    assert_eq!(taken.services[0].tables["audit_outbox"], 2);
}

#[tokio::test]
async fn a_place_that_would_lose_something_is_refused() {
    let rig = Rig::new().await;
    let within = rig.data().join("backup.tar");
    let refused = take(&config(&rig.data()), &within, &Stop::default(), |_| {})
        .await
        .err();
    assert!(matches!(refused, Some(BackupError::Within(_))));
    rig.take().await.unwrap();
    assert!(matches!(rig.take().await, Err(BackupError::Exists(_))));
    put(&rig.target().join("mine"), b"x", 0o600);
    let refused = rig.restore(&rig.file()).await.unwrap_err();
    assert!(matches!(refused, BackupError::NotEmpty(_)), "{refused}");
    assert_eq!(fs::read_dir(rig.target()).unwrap().count(), 1);
    let nothing = config(&rig.dir.path().join("nowhere"));
    let file = rig.dir.path().join("other.tar");
    let refused = take(&nothing, &file, &Stop::default(), |_| {}).await.err();
    assert!(matches!(refused, Some(BackupError::Nothing(_))));
    assert!(!nothing.data.dir.exists());
}

#[tokio::test]
async fn what_a_file_system_has_at_its_root_is_not_read() {
    let rig = Rig::new().await;
    // As root may read it: a folder that is listed would be in the backup with what is in it.
    put(&rig.data().join("lost+found/#12"), b"x", 0o600);
    put(&rig.data().join("auth/lost+found/kept"), b"x", 0o600);
    let taken = rig.take().await.unwrap();
    let paths: Vec<_> = taken.files.iter().map(|part| part.path.as_str()).collect();
    assert!(!paths.contains(&"lost+found/#12"), "{paths:?}");
    assert!(paths.contains(&"auth/lost+found/kept"), "{paths:?}");
}

#[tokio::test]
async fn an_empty_directory_is_filled_and_not_replaced() {
    let rig = Rig::new().await;
    let taken = rig.take().await.unwrap();
    // As the root of a volume: its parent is another's, and the directory stays.
    let parent = rig.dir.path().join("volumes");
    let volume = parent.join("tars");
    fs::create_dir_all(volume.join("lost+found")).unwrap();
    put(&volume.join("lock"), b"", 0o600);
    let before = fs::metadata(&volume).unwrap().ino();
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o555)).unwrap();
    let done = restore(&config(&volume), &rig.file(), &Stop::default(), |_| {}).await;
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(done.unwrap(), taken);
    assert_eq!(fs::metadata(&volume).unwrap().ino(), before);
    assert_eq!(mode(&volume.join("ca/ca.key")), 0o600);
    assert_eq!(names(&parent), ["tars"]);
    let expected = ["auth", "ca", "lock", "lost+found", "orchestration"];
    assert_eq!(names(&volume), expected);
}

#[tokio::test]
async fn the_end_of_a_link_is_filled() {
    let rig = Rig::new().await;
    rig.take().await.unwrap();
    let volume = tempfile::tempdir().unwrap();
    symlink(volume.path(), rig.target()).unwrap();
    rig.restore(&rig.file()).await.unwrap();
    assert!(rig.target().is_symlink());
    assert!(volume.path().join("ca/ca.key").exists());
    assert_eq!(rig.names(), ["backup.tar", "data", "restored"]);

    fs::remove_file(rig.target()).unwrap();
    symlink(rig.dir.path().join("nowhere"), rig.target()).unwrap();
    let refused = rig.restore(&rig.file()).await.unwrap_err();
    assert!(refused.is_absence(), "{refused}");
    assert_eq!(rig.names(), ["backup.tar", "data", "restored"]);
}

#[tokio::test]
async fn a_directory_that_a_mesh_took_meanwhile_is_left_to_it() {
    let rig = Rig::new().await;
    rig.take().await.unwrap();
    fs::create_dir(rig.target()).unwrap();
    let (stop, lock) = (Stop::default(), std::cell::OnceCell::new());
    let starts = |_: &str| {
        lock.get_or_init(|| crate::app::DirLock::whole(&rig.target()).unwrap());
    };
    let refused = restore(&config(&rig.target()), &rig.file(), &stop, starts).await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused, BackupError::InUse(_)), "{refused}");
    assert_eq!(names(&rig.target()), ["lock"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_stopped_amid_a_file_leaves_nothing() {
    let rig = Rig::new().await;
    let large = fs::File::create(rig.data().join("large")).unwrap();
    large.set_len(1 << 40).unwrap();
    let stop = Stop::default();
    let (of_watch, dir) = (stop.clone(), rig.dir.path().to_owned());
    let watch = tokio::spawn(async move {
        let is_amid = |name: &String| {
            let copy = fs::metadata(dir.join(name).join("large"));
            name.starts_with(".tars") && copy.is_ok_and(|copy| copy.len() > 0)
        };
        let amid = async {
            while !names(&dir).iter().any(is_amid) {
                tokio::task::yield_now().await;
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(60), amid).await;
        of_watch.request();
        seen
    });
    let stopped = take(&config(&rig.data()), &rig.file(), &stop, |_| {}).await;
    assert!(matches!(stopped.err(), Some(BackupError::Interrupted)));
    watch.await.unwrap().unwrap();
    assert_eq!(rig.names(), ["data"]);
}

#[tokio::test]
async fn a_restore_that_is_stopped_leaves_nothing() {
    let rig = Rig::new().await;
    rig.take().await.unwrap();
    for at in ["unpacking", "verifying the database of orchestration"] {
        let stop = Stop::default();
        let progress = |step: &str| {
            if step.starts_with(at) {
                stop.request();
            }
        };
        let stopped = restore(&config(&rig.target()), &rig.file(), &stop, progress).await;
        let stopped = stopped.unwrap_err();
        assert!(matches!(stopped, BackupError::Interrupted), "{stopped}");
        assert_eq!(rig.names(), ["backup.tar", "data"]);
    }
}

#[tokio::test]
async fn files_of_others_are_refused_as_such() {
    let rig = Rig::new().await;
    let mut other = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    other
        .append_data(&mut header, "README", &b"hi"[..])
        .unwrap();
    let other = other.into_inner().unwrap();
    let gzip = [&[0x1f, 0x8b, 8, 0][..], &[9; 2000]].concat();
    let sqlite = [&b"SQLite format 3\0"[..], &[0; 4096]].concat();
    let claims = |text: &str| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        tar.append_data(&mut header, "manifest.json", text.as_bytes())
            .unwrap();
        tar.into_inner().unwrap()
    };
    for content in [
        Vec::new(),
        b"hello".to_vec(),
        vec![b'x'; 5000],
        vec![0; 5000],
        gzip,
        sqlite,
        other,
        claims("{}"),
        claims("no JSON"),
        claims(r#"{"format": "another's", "version": 1}"#),
    ] {
        let refused = rig.refused(&content).await;
        assert!(matches!(refused, BackupError::Foreign { .. }), "{refused}");
        assert!(
            refused.to_string().contains("is not a backup of tars"),
            "{refused}"
        );
    }
    let newer = rig
        .refused(&claims(r#"{"format": "tars backup", "version": 9}"#))
        .await;
    assert!(
        matches!(newer, BackupError::Newer { found: 9, .. }),
        "{newer}"
    );
}

#[tokio::test]
async fn an_archive_that_was_cut_off_anywhere_is_refused() {
    let rig = Rig::new().await;
    rig.take().await.unwrap();
    let whole = fs::read(rig.file()).unwrap();
    // The last two blocks only mark the end.
    let content = whole.len() - 1024;
    let cuts = (1..content)
        .step_by(content / 60)
        .chain([content - 1, content - 512]);
    for cut in cuts {
        let refused = rig.refused(&whole[..cut]).await;
        assert!(
            matches!(
                refused,
                BackupError::Damaged { .. } | BackupError::Foreign { .. }
            ),
            "{cut}: {refused}"
        );
    }
}

#[tokio::test]
async fn an_archive_of_which_any_byte_was_changed_is_refused_or_restored_unchanged() {
    let rig = Rig::new().await;
    let taken = rig.take().await.unwrap();
    let whole = fs::read(rig.file()).unwrap();
    let mut refusals = 0;
    for at in (0..whole.len()).step_by(whole.len() / 80) {
        let mut content = whole.clone();
        content[at] ^= 0x40;
        let file = rig.dir.path().join("bad.tar");
        fs::write(&file, &content).unwrap();
        match rig.restore(&file).await {
            Err(e) => {
                assert!(!rig.target().exists(), "{at}: {e}");
                refusals += 1;
            }
            // What fills the last block of a file up means nothing.
            Ok(restored) => {
                assert_eq!(restored, taken, "{at}");
                fs::remove_dir_all(rig.target()).unwrap();
            }
        }
    }
    assert!(refusals > 40, "{refusals}");
}

/// An archive as a hostile or mistaken writer would make it.
async fn forged(rig: &Rig, change: impl FnOnce(&mut Manifest, &Path)) -> Vec<u8> {
    let mut manifest = rig.take().await.unwrap();
    let content = rig.dir.path().join("content");
    archive::extract(&rig.file(), &content, &Stop::default()).unwrap();
    change(&mut manifest, &content);
    let file = rig.dir.path().join("forged.tar");
    archive::write(&content, &manifest, &file, &Stop::default()).unwrap();
    fs::read(&file).unwrap()
}

#[tokio::test]
async fn rows_that_are_not_those_that_were_counted_are_refused() {
    let rig = Rig::new().await;
    let forged = forged(&rig, |manifest, _| {
        manifest.services[0]
            .tables
            .insert("audit_outbox".to_owned(), 2);
    });
    let refused = rig.refused(&forged.await).await;
    assert!(refused.to_string().contains("auth"), "{refused}");
    assert!(matches!(refused, BackupError::Damaged { .. }), "{refused}");
}

#[test]
fn a_backup_in_the_first_format_is_one_of_files() {
    let text = r#"{ "format": "tars backup", "version": 1, "made_by": "0.1.0", "made_at_s": 1,
                    "services": [], "files": [] }"#;
    let manifest: Manifest = serde_json::from_str(text).unwrap();
    assert_eq!(manifest.engine, Engine::Sqlite);
}

#[tokio::test]
async fn a_service_of_another_version_is_refused() {
    let rig = Rig::new().await;
    let forged = forged(&rig, |manifest, _| {
        manifest.services[0].name = "oracle".to_owned();
    });
    let refused = rig.refused(&forged.await).await;
    assert!(
        matches!(refused, BackupError::UnknownService(_)),
        "{refused}"
    );
}

#[tokio::test]
async fn a_schema_of_a_newer_version_is_refused() {
    let rig = Rig::new().await;
    let file = rig.data().join(database_file(Service::Auth));
    let db = Db::attach(&file).await.unwrap();
    let mut tx = db.write("test", Isolation::Exclusive).await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (999, 'newer', TRUE, 'x', 1)";
    tx.execute(Query::new(newer)).await.unwrap().one().unwrap();
    tx.commit().await.unwrap();
    db.close().await;
    let refused = rig.take().await.unwrap_err().to_string();
    assert!(refused.contains("migration 999"), "{refused}");
    assert!(!rig.file().exists());
}

#[tokio::test]
async fn a_path_that_leads_out_of_the_directory_is_refused() {
    for path in ["../evil", "/tmp/evil", "ca/../../evil", ""] {
        let rig = Rig::new().await;
        let manifest = rig.take().await.unwrap();
        let part = files::look(&rig.data(), Path::new("ca/ca.crt"), &Stop::default()).unwrap();
        let part = FilePart {
            path: path.to_owned(),
            ..part
        };
        let files = vec![part];
        let text = serde_json::to_vec(&Manifest { files, ..manifest }).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        tar.append_data(&mut header, "manifest.json", text.as_slice())
            .unwrap();
        let refused = rig.refused(&tar.into_inner().unwrap()).await;
        assert!(refused.to_string().contains("no path within"), "{refused}");
    }
}

/// A backup with something else before the digest of its list.
async fn with_entries(rig: &Rig, add: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    rig.take().await.unwrap();
    let whole = fs::read(rig.file()).unwrap();
    // The digest is a header and a block of content, as is the mark of the end.
    let (entries, end) = whole.split_at(whole.len() - 2048);
    let mut tar = tar::Builder::new(entries.to_vec());
    add(&mut tar);
    let mut changed = tar.into_inner().unwrap();
    // Without the mark of the end that was written now.
    changed.truncate(changed.len() - 1024);
    [&changed, end].concat()
}

#[tokio::test]
async fn a_file_that_is_not_listed_and_one_behind_the_end_are_refused() {
    let rig = Rig::new().await;
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    let unlisted = with_entries(&rig, |tar| {
        tar.append_data(&mut header, "ca/evil", &b"evil"[..])
            .unwrap();
    });
    let refused = rig.refused(&unlisted.await).await.to_string();
    assert!(refused.contains("ca/evil is not in its list"), "{refused}");

    let whole = fs::read(rig.file()).unwrap();
    let mut behind = tar::Builder::new(whole[..whole.len() - 1024].to_vec());
    behind
        .append_data(&mut header, "ca/evil", &b"evil"[..])
        .unwrap();
    let refused = rig.refused(&behind.into_inner().unwrap()).await.to_string();
    assert!(refused.contains("ca/evil follows its end"), "{refused}");
}

#[tokio::test]
async fn a_link_in_the_place_of_a_listed_file_is_refused() {
    let rig = Rig::new().await;
    let mut manifest = rig.take().await.unwrap();
    let content = rig.dir.path().join("content");
    archive::extract(&rig.file(), &content, &Stop::default()).unwrap();
    put(&content.join("ca/link"), b"", 0o600);
    let part = files::look(&content, Path::new("ca/link"), &Stop::default());
    manifest.files.push(part.unwrap());
    let file = rig.dir.path().join("forged.tar");
    archive::write(&content, &manifest, &file, &Stop::default()).unwrap();
    let mut forged = fs::read(&file).unwrap();
    // The listed file is empty: its header is the one before the digest.
    let at = forged.len() - 2048 - 512;
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_path("ca/link").unwrap();
    header.set_link_name("/etc/passwd").unwrap();
    header.set_size(0);
    header.set_cksum();
    forged[at..at + 512].copy_from_slice(header.as_bytes());
    let refused = rig.refused(&forged).await.to_string();
    assert!(
        refused.contains("ca/link: it is not as it is listed"),
        "{refused}"
    );
}

#[tokio::test]
async fn headers_that_would_fill_the_memory_are_refused_unread() {
    use tar::EntryType;
    let rig = Rig::new().await;
    for (kind, bytes) in [
        (EntryType::GNULongName, (64 << 10) + 1),
        (EntryType::GNULongLink, 1 << 40),
        (EntryType::XHeader, 1 << 40),
        (EntryType::XHeader, 20),
        (EntryType::GNUSparse, 0),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path("extension").unwrap();
        header.set_size(bytes);
        header.set_cksum();
        let forged = with_entries(&rig, |tar| {
            tar.append(&header, io::empty()).unwrap();
        });
        let refused = rig.refused(&forged.await).await.to_string();
        assert!(refused.contains("extension header"), "{kind:?}: {refused}");
        fs::remove_file(rig.file()).unwrap();
    }
}

#[tokio::test]
async fn a_database_that_would_not_be_verified_is_refused() {
    for (path, reason) in [
        ("gateway/gateway.db", "gateway/gateway.db is no part"),
        ("automl/automl.db", "automl/automl.db is no part"),
        ("auth/auth.db-wal", "auth/auth.db-wal is no part"),
        (
            "orchestration/orchestration.db-journal",
            "db-journal is no part",
        ),
        ("lock", "lock is no part"),
    ] {
        let rig = Rig::new().await;
        let forged = forged(&rig, |manifest, content| {
            put(&content.join(path), b"garbage", 0o600);
            let part = files::look(content, Path::new(path), &Stop::default());
            manifest.files.push(part.unwrap());
        });
        let refused = rig.refused(&forged.await).await.to_string();
        assert!(refused.contains(reason), "{refused}");
    }
}

#[tokio::test]
async fn services_and_databases_that_do_not_match_are_refused() {
    type Change = fn(&mut Manifest);
    let changes: [(Change, &str); 4] = [
        (|m| m.services.clear(), "auth/auth.db is no part"),
        (
            |m| drop(m.services.remove(1)),
            "orchestration.db is no part",
        ),
        (
            |m| m.services.push(m.services[0].clone()),
            "auth is listed twice",
        ),
        (
            |m| m.files.retain(|file| file.path != "auth/auth.db"),
            "auth/auth.db is not in its list",
        ),
    ];
    for (change, reason) in changes {
        let rig = Rig::new().await;
        let forged = forged(&rig, |manifest, _| change(manifest));
        let refused = rig.refused(&forged.await).await.to_string();
        assert!(refused.contains(reason), "{refused}");
    }
}

#[tokio::test]
async fn nothing_is_restored_as_a_program() {
    let rig = Rig::new().await;
    put(&rig.data().join("tars.toml"), b"", 0o777);
    rig.take().await.unwrap();
    rig.restore(&rig.file()).await.unwrap();
    assert_eq!(mode(&rig.target().join("tars.toml")), 0o644);
}

/// Backups of schemas on a server, and moves between the engines.
mod postgres {
    use super::*;
    use sha2::{Digest, Sha256};
    use std::collections::BTreeMap;
    use tars_runtime::{
        blobs::Blobs,
        db::{Place, Server},
    };

    fn on_server(dir: &Path) -> Config {
        Config {
            database: tars_test_db::on_postgres(dir),
            ..config(dir)
        }
    }

    fn schema(config: &Config, service: Service) -> Place {
        Place::Server {
            server: Server::of(&config.database).unwrap().unwrap(),
            service: service.as_str().to_owned(),
        }
    }

    const BLOB: &[u8] = &[9; 200_000];

    fn blob_name() -> String {
        files::hex(&Sha256::digest(BLOB))
    }

    /// The rows of each service's tables, without those that belong to a process or become files.
    fn rows(manifest: &Manifest) -> BTreeMap<String, BTreeMap<String, i64>> {
        let mut rows = BTreeMap::new();
        for part in &manifest.services {
            let mut tables = part.tables.clone();
            tables.retain(|name, _| name != "leases" && !name.starts_with("blob"));
            rows.insert(part.name.clone(), tables);
        }
        rows
    }

    async fn outbox(config: &Config, service: Service) -> i64 {
        let db = Db::attach(schema(config, service)).await.unwrap();
        let tables = db.tables().await.unwrap();
        let outbox = tables.iter().find(|t| t.name == "audit_outbox").unwrap();
        outbox.rows
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run by cargo xtask test"]
    async fn a_mesh_moves_to_a_server_and_is_backed_up_there() {
        let rig = Rig::new().await;
        let blobs = rig.data().join("orchestration/blobs");
        fs::remove_file(blobs.join("abc")).unwrap();
        put(&blobs.join(blob_name()), BLOB, 0o600);
        let taken = rig.take().await.unwrap();
        let server = on_server(&rig.target());
        let moved = restore(&server, &rig.file(), &Stop::default(), |_| {})
            .await
            .unwrap();
        assert_eq!(moved, taken);
        assert_eq!(outbox(&server, Service::Auth).await, 1);
        let ca_key = rig.target().join("ca/ca.key");
        assert_eq!(mode(&ca_key), 0o600);
        for absent in [
            "auth/auth.db",
            "orchestration/orchestration.db",
            "orchestration/blobs",
        ] {
            assert!(!rig.target().join(absent).exists(), "{absent}");
        }
        let db = Db::attach(schema(&server, Service::Orchestration)).await;
        let stored = Blobs::in_database(db.unwrap());
        assert_eq!(stored.get(&blob_name()).await.unwrap(), BLOB);

        let file = rig.dir.path().join("server.tar");
        let taken = take(&server, &file, &Stop::default(), |_| {})
            .await
            .unwrap()
            .manifest;
        assert_eq!(mode(&file), 0o600);
        assert_eq!(rows(&taken), rows(&moved));
        let paths: Vec<_> = taken.files.iter().map(|f| f.path.as_str()).collect();
        let blob = format!("orchestration/blobs/{}", blob_name());
        assert_eq!(
            paths,
            ["auth/auth.db", "orchestration/orchestration.db", &blob],
            "nothing of a data directory"
        );
        let other = on_server(&rig.dir.path().join("other"));
        let restored = restore(&other, &file, &Stop::default(), |_| {})
            .await
            .unwrap();
        assert_eq!(restored, taken);
        assert!(!other.data.dir.exists(), "there is nothing to put there");
        assert_eq!(outbox(&other, Service::Orchestration).await, 1);
        let db = Db::attach(schema(&other, Service::Orchestration)).await;
        let stored = Blobs::in_database(db.unwrap());
        assert_eq!(stored.get(&blob_name()).await.unwrap(), BLOB);

        let back = config(&rig.dir.path().join("back"));
        assert_eq!(
            restore(&back, &file, &Stop::default(), |_| {})
                .await
                .unwrap(),
            taken
        );
        let read = fs::read(back.data.dir.join(&blob)).unwrap();
        assert_eq!((read.as_slice(), mode(&back.data.dir)), (BLOB, 0o700));
        let auth = Db::attach(&back.data.dir.join("auth/auth.db")).await;
        let tables = auth.unwrap().tables().await.unwrap();
        let outbox = tables.iter().find(|t| t.name == "audit_outbox").unwrap();
        assert_eq!(outbox.rows, 1);
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run by cargo xtask test"]
    async fn a_server_with_tables_is_refused_and_nothing_is_left_of_the_attempt() {
        let rig = Rig::new().await;
        fs::remove_dir_all(rig.data().join("orchestration/blobs")).unwrap();
        rig.take().await.unwrap();
        let server = on_server(&rig.target());
        let migrations = crate::app::migrations(Service::Orchestration).unwrap();
        let place = schema(&server, Service::Orchestration);
        let db = Db::open(place, migrations).await.unwrap();
        let refused = restore(&server, &rig.file(), &Stop::default(), |_| {})
            .await
            .unwrap_err();
        assert!(
            refused.to_string().contains("has tables already"),
            "{refused}"
        );
        assert!(!rig.target().exists());
        let auth = Db::attach(schema(&server, Service::Auth)).await.unwrap();
        assert_eq!(auth.tables().await.unwrap(), []);
        db.close().await;
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run by cargo xtask test"]
    async fn a_blob_whose_name_is_another_contents_is_refused() {
        let rig = Rig::new().await;
        rig.take().await.unwrap();
        let server = on_server(&rig.target());
        let refused = restore(&server, &rig.file(), &Stop::default(), |_| {})
            .await
            .unwrap_err();
        assert!(matches!(refused, BackupError::Blob { .. }), "{refused}");
        assert!(!rig.target().exists());
    }

    #[tokio::test]
    #[ignore = "needs PostgreSQL: run by cargo xtask test"]
    async fn a_server_without_schemas_of_a_mesh_is_reported() {
        let rig = Rig::new().await;
        let server = on_server(&rig.target());
        let refused = take(&server, &rig.file(), &Stop::default(), |_| {})
            .await
            .err();
        assert!(matches!(refused, Some(BackupError::NoSchemas(_))));
        assert!(!rig.file().exists());
    }
}
