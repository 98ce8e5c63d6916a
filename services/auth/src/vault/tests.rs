use super::*;
use crate::{
    Auth,
    testing::{World, here, open},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use std::sync::Arc;
use tars_runtime::{clock::Clock, db::Query};

async fn vault(dir: &Path, seal: Option<&Path>) -> Result<Vault, AuthError> {
    let place = tars_test_db::place(dir, "auth");
    Vault::open(dir, &place, seal).await
}

async fn closed(vault: Vault) {
    vault.store.db().close().await;
}

/// Puts the database into the state of a version that had the refresh key in a file.
async fn take_back_the_row(dir: &Path) -> Vec<u8> {
    let opened = vault(dir, None).await.unwrap();
    let key = opened.refresh_key().as_slice().to_vec();
    let mut tx = opened.store.begin("test.refresh_key").await.unwrap();
    let row = Query::new("DELETE FROM sealed_secrets WHERE name = $1").bind(REFRESH_KEY);
    tx.execute(row).await.unwrap().one().unwrap();
    tx.commit().await.unwrap();
    closed(opened).await;
    let text = URL_SAFE_NO_PAD.encode(&key);
    secret::write(&dir.join("refresh.key"), text.as_bytes()).unwrap();
    key
}

#[tokio::test]
async fn the_refresh_key_outlives_the_process_and_is_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let first = vault(dir.path(), None).await.unwrap();
    let mut db = first.store.read("test.sealed");
    let row = store::sealed(&mut db, REFRESH_KEY).await.unwrap().unwrap();
    let key = first.refresh_key().as_slice().to_vec();
    assert!(!row.sealed.windows(32).any(|part| part == key));
    closed(first.clone()).await;
    let second = vault(dir.path(), None).await.unwrap();
    assert_eq!(second.refresh_key().as_slice(), key);
    assert!(!format!("{second:?}").contains(&format!("{key:?}")));
}

#[tokio::test]
async fn a_refresh_key_in_a_file_is_imported_once() {
    let dir = tempfile::tempdir().unwrap();
    let key = take_back_the_row(dir.path()).await;
    let opened = vault(dir.path(), None).await.unwrap();
    assert_eq!(opened.refresh_key().as_slice(), key);
    let file = dir.path().join("refresh.key");
    assert!(!file.exists());
    closed(opened).await;
    // A file that appears afterwards does not replace the row.
    let other = URL_SAFE_NO_PAD.encode([9; 32]);
    secret::write(&file, other.as_bytes()).unwrap();
    let again = vault(dir.path(), None).await.unwrap();
    assert_eq!(again.refresh_key().as_slice(), key);
    assert!(!file.exists());
}

#[tokio::test]
async fn sessions_and_lost_replies_survive_the_import_of_the_refresh_key() {
    let World {
        dir,
        auth,
        clock,
        password,
        ..
    } = World::new().await;
    let (_, tokens) = auth.login("admin", &password, &here()).await.unwrap();
    let used = auth.refresh(&tokens.refresh, &here()).await.unwrap();
    drop(auth);
    take_back_the_row(dir.path()).await;
    let (auth, _, _) = open(dir.path(), &clock).await;
    let repeated = auth.refresh(&tokens.refresh, &here()).await.unwrap();
    assert_eq!(*repeated.refresh, *used.refresh, "the same successor");
    assert!(auth.refresh(&used.refresh, &here()).await.is_ok());
}

#[tokio::test]
async fn a_key_that_another_replica_makes_meanwhile_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seal.key");
    let sealed_meanwhile = async {
        Seal::create(&path).unwrap();
        Ok(true)
    };
    let seal = open_seal(&path, sealed_meanwhile).await.unwrap();
    let sealed = seal.seal("a name", b"a secret").unwrap();
    let made = Seal::read(&path).unwrap().expect("the key of the other");
    assert_eq!(*made.open("a name", &sealed).unwrap(), *b"a secret");
}

#[tokio::test]
async fn a_database_sealed_with_another_key_is_refused_with_what_to_do() {
    let world = World::new().await;
    let dir = world.dir.path();
    let Vault { store, .. } = vault(dir, None).await.unwrap();
    let stored = store::sealed_edition(&mut store.read("test.sealed"), REFRESH_KEY).await;
    let path = dir.join("seal.key");
    let key = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let missing = vault(dir, None).await.unwrap_err();
    assert!(matches!(missing, AuthError::SealKeyMissing(_)), "{missing}");
    assert!(!path.exists(), "none is made for a database that has one");
    Seal::create(&path).unwrap();
    let other = vault(dir, None).await.unwrap_err();
    assert!(matches!(other, AuthError::SealedOtherwise(_)), "{other}");
    for refused in [missing, other] {
        let text = refused.to_string();
        for part in [
            &*path.display().to_string(),
            "credentials.seal_key_file",
            "copy",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    let unchanged = store::sealed_edition(&mut store.read("test.sealed"), REFRESH_KEY).await;
    assert_eq!(unchanged.unwrap(), stored.unwrap());
    secret::write(&path, &key).unwrap();
    vault(dir, None).await.unwrap();
}

#[tokio::test]
async fn a_database_from_before_the_sealed_secrets_is_refused_with_another_key_too() {
    let world = World::new().await;
    let dir = world.dir.path();
    let _key = take_back_the_row(dir).await;
    fs::remove_file(dir.join("seal.key")).unwrap();
    Seal::create(&dir.join("seal.key")).unwrap();
    let refused = vault(dir, None).await.unwrap_err();
    assert!(
        matches!(refused, AuthError::SealedOtherwise(_)),
        "{refused}"
    );
    assert!(dir.join("refresh.key").exists(), "nothing was imported");
}

#[tokio::test]
async fn the_sealing_key_is_where_the_configuration_says() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = elsewhere.path().join("keys/auth.key");
    closed(vault(dir.path(), Some(&path)).await.unwrap()).await;
    assert!(path.exists() && !dir.path().join("seal.key").exists());
    vault(dir.path(), Some(&path)).await.unwrap();
    let text = fs::read(&path).unwrap();
    secret::write_public(&path, &text).unwrap();
    let refused = vault(dir.path(), Some(&path)).await.unwrap_err();
    assert!(refused.to_string().contains("chmod 600"), "{refused}");
}

#[tokio::test]
async fn of_two_first_administrators_and_signing_keys_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Duration::from_secs(1_800_000_000));
    let started = async || open(dir.path(), &clock).await;
    let ((one, _, first), (two, _, second)) = tokio::join!(started(), started());
    assert_ne!(first.is_some(), second.is_some(), "{first:?} {second:?}");
    let kid = |auth: &Arc<Auth>| auth.signer.kid().to_owned();
    assert_eq!(kid(&one), kid(&two));
    assert_eq!(one.signing_keys().await.unwrap().len(), 1);
    let (users, _) = two.list_users("", 10).await.unwrap();
    assert_eq!(users.len(), 1);
}

#[tokio::test]
async fn an_authority_in_a_database_that_is_not_shared_becomes_a_folder() {
    let (dir, now) = (
        tempfile::tempdir().unwrap(),
        Duration::from_secs(1_800_000_000),
    );
    let place = Place::File(dir.path().join("auth.db"));
    let vault = Vault::open(dir.path(), &place, None).await.unwrap();
    let (domain, lives) = ("tars.local", Lifetimes::default());
    let put = async |contents: &Contents| {
        let mut tx = vault.store.begin("test.authority").await.unwrap();
        let sealed = vault.sealed(contents).unwrap();
        let put = store::insert_sealed(&mut tx, AUTHORITY, &sealed).await;
        put.unwrap();
        tx.commit().await.unwrap();
    };
    let open = async |folder: &str| {
        let folder = dir.path().join(folder);
        vault.authority(&folder, domain, lives, now).await
    };
    let restored = Contents::create(domain, lives, now).unwrap();
    put(&restored).await;
    let opened = open("ca").await.unwrap();
    assert_eq!(opened.copy_version(), None, "it is no working copy");
    assert_eq!(Contents::read(&dir.path().join("ca")).unwrap(), restored);
    let stored = store::sealed_edition(&mut vault.store.read("test"), AUTHORITY).await;
    assert!(stored.unwrap().is_none(), "the folder counts from now on");
    // A folder with another authority is not overwritten, and the row stays.
    let other = open("other").await.unwrap();
    put(&restored).await;
    let refused = open("other").await.unwrap_err();
    assert!(
        matches!(refused, AuthError::Ca(tars_certs::CaError::Foreign(_))),
        "{refused}"
    );
    let kept = Contents::read(&dir.path().join("other")).unwrap();
    assert_ne!(kept, restored);
    assert_eq!(other.roots().len(), 1);
    assert_eq!(open("ca").await.unwrap().roots(), opened.roots());
}

#[tokio::test]
async fn an_authority_that_another_has_replaced_is_not_replaced_again() {
    let dir = tempfile::tempdir().unwrap();
    let vault = vault(dir.path(), None).await.unwrap();
    let contents = Contents::create(
        "tars.local",
        Lifetimes::default(),
        Duration::from_secs(1_800_000_000),
    )
    .unwrap();
    let mut tx = vault.store().begin("test.replace").await.unwrap();
    let sealed = vault.sealed(&contents).unwrap();
    store::insert_sealed(&mut tx, AUTHORITY, &sealed)
        .await
        .unwrap();
    let replaced = vault.replace(&mut tx, 1, &contents).await.unwrap();
    assert_eq!(replaced.version, 2);
    let stale = vault.replace(&mut tx, 1, &contents).await;
    assert!(matches!(stale, Err(AuthError::Conflict)), "{stale:?}");
}
