//! What a temporarily wrong wall clock must not undo.

use super::*;
use tars_runtime::db::{Db, Isolation};

const AHEAD: Duration = Duration::from_secs(400 * 86_400);

fn of(new: &Verified) -> Target {
    Target::Certificate {
        issuer: None,
        serial: new.certificate.serial.clone(),
    }
}

impl World {
    async fn pushed_serials(&self) -> Vec<String> {
        let whole = self.auth.snapshots.take().await.unwrap();
        let revoked = whole.revoked_certificates.into_iter();
        revoked.map(|r| r.serial).collect()
    }
}

#[tokio::test]
async fn a_wall_clock_temporarily_ahead_drops_no_revocation() {
    let w = world().await;
    let (bad, late, good) = (
        w.verified(&w.join("/automl").await),
        w.verified(&w.join("/hypersync").await),
        w.verified(&w.join("/gateway").await),
    );
    w.auth.revoke(&ada(), &of(&bad), "stolen").await.unwrap();
    w.clock.step_forward(AHEAD);
    let reported = w.auth.report_trust(&good, Uuid::now_v7(), &[]).await;
    reported.unwrap();
    let meanwhile = w.pushed_serials().await;
    assert_eq!(meanwhile, [bad.certificate.serial.to_string()]);
    let revoked = w.auth.revoke(&ada(), &of(&late), "stolen").await.unwrap();
    assert_eq!(
        revoked.len(),
        1,
        "expired by the wall clock, revoked all the same"
    );
    w.clock.step_back(AHEAD);
    let kept = w.pushed_serials().await;
    for one in [&bad, &late] {
        assert!(kept.contains(&one.certificate.serial.to_string()));
        assert!(w.auth.certificates().feed.revocations.denies(one));
    }
    assert_eq!(w.auth.list_revocations("", 50).await.unwrap().0.len(), 2);
    assert_eq!(kept.len(), 2);
}

#[tokio::test]
async fn a_wall_clock_temporarily_ahead_makes_no_used_token_valid() {
    let w = world().await;
    let show = async |token: &JoinToken| {
        let csr = key_and_csr().1;
        w.auth.issue_with_token(token.as_str(), &csr, "x").await
    };
    let used = w.token("/automl").await;
    show(&used).await.unwrap();
    w.clock.step_forward(AHEAD);
    let other = w.token("/automl").await;
    show(&other).await.unwrap();
    w.clock.step_back(AHEAD);
    let again = show(&used).await;
    assert!(matches!(again, Err(AuthError::JoinToken)), "{again:?}");
}

#[tokio::test]
async fn a_revocation_is_deleted_long_after_its_certificate_expired() {
    let w = world().await;
    let bad = w.verified(&w.join("/automl").await);
    w.auth.revoke(&ada(), &of(&bad), "stolen").await.unwrap();
    let report = async || {
        let done = w.auth.report_trust(&bad, Uuid::now_v7(), &[]).await;
        done.unwrap();
        w.pushed_serials().await.len()
    };
    w.clock.advance(RETENTION);
    assert_eq!(report().await, 1);
    w.clock.advance(crate::horizon::DAY);
    assert_eq!(report().await, 0);
}

#[tokio::test]
async fn an_unusable_journal_entry_holds_up_neither_revocation_nor_start() {
    let w = world().await;
    let issued = w.dir.path().join("ca/issued");
    std::fs::create_dir_all(issued.join("folder.json")).unwrap();
    std::fs::write(issued.join("cut.json"), "{\"spiffe_id\":").unwrap();
    std::fs::write(issued.join("bytes.json"), [0xff, 0xfe]).unwrap();
    let authority = w.auth.certificates().authority().unwrap();
    let id = SpiffeId::new("tars.local", "/client/bot").unwrap();
    let request = Request::new(id, Duration::from_secs(60));
    let made = authority.issue(&request, w.clock.now()).unwrap();
    let target = Target::Certificate {
        issuer: None,
        serial: made.name.serial.clone(),
    };
    let revoked = w.auth.revoke(&ada(), &target, "stolen").await.unwrap();
    assert_eq!(revoked.len(), 1, "the valid entry beside them was imported");
    let joined = w.join("/automl").await;
    w.renew(&joined).await.unwrap();
    assert!(w.auth.list_certificates("", "", 50).await.is_ok());
    let _again = w.restart().await;
    assert!(
        issued.join("cut.json").exists(),
        "left in place for an operator"
    );
}

#[tokio::test]
async fn a_rotation_step_that_was_taken_is_never_reported_as_failed() {
    let w = world_of_files().await;
    let other = Db::open(&w.place, crate::store::MIGRATIONS).await.unwrap();
    let held = other.write("test.hold", Isolation::Exclusive).await;
    let held = tars_test_db::Lock::of(held.unwrap());
    let (version, _) = w
        .auth
        .step_roots("ada", RotationStep::Prepare, false)
        .await
        .unwrap();
    drop(held);
    w.auth.record_late_steps().await.unwrap();
    w.auth.sequence_once().await.unwrap();
    let filter = crate::audit::Filter {
        event_type: "root.stepped".to_owned(),
        ..Default::default()
    };
    let (records, _) = w.auth.list_audit(&filter, "", 50).await.unwrap();
    assert_eq!(records[0].details["version"], version.to_string());
    assert_eq!(w.auth.roots().await.unwrap().version, version);
}

#[tokio::test]
async fn the_reports_of_one_identity_are_bounded() {
    let w = world().await;
    let (greedy, honest) = (
        w.verified(&w.join("/automl").await),
        w.verified(&w.join("/hypersync").await),
    );
    let instance = Uuid::now_v7();
    w.auth.report_trust(&honest, instance, &[]).await.unwrap();
    for _ in 0..300 {
        let done = w.auth.report_trust(&greedy, Uuid::now_v7(), &[]).await;
        done.unwrap();
    }
    let last = Uuid::now_v7();
    w.auth.report_trust(&greedy, last, &[]).await.unwrap();
    let rows = w.auth.store.reports(0).await.unwrap();
    assert_eq!(rows.len(), 257);
    assert!(rows.iter().any(|r| r.instance == instance));
    assert!(rows.iter().any(|r| r.instance == last));
    // Another certificate of the same identity has a share of its own.
    let other = w.verified(&w.join("/hypersync").await);
    w.clock.advance(Duration::from_secs(60));
    let later = w.verified(&w.join("/hypersync").await);
    for peer in [&other, &later] {
        for _ in 0..300 {
            let done = w.auth.report_trust(peer, Uuid::now_v7(), &[]).await;
            done.unwrap();
        }
    }
    let rows = w.auth.store.reports(0).await.unwrap();
    assert!(rows.iter().any(|r| r.instance == instance));
    assert_eq!(rows.len(), 257 + 2 * 256);
}
