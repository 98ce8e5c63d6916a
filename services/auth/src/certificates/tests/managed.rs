//! Certificates that the authority's own process manages, and rotations without revoked or departed
//! processes.

use super::*;
use tars_runtime::db::Query;

/// A certificate that the authority's own process manages, and its renewals.
async fn managed(w: &World, path: &str, renewals: usize) -> Vec<Verified> {
    let authority = w.auth.certificates().authority().unwrap();
    let id = SpiffeId::new("tars.local", path).unwrap();
    let request = Request::new(id, Duration::from_secs(3600)).managed_by_authority();
    let verified = |issued: tars_certs::ca::Issued| {
        let time: Arc<dyn TimeProvider> = Arc::new(w.clock.clone());
        let parts = issued.into_parts(authority.roots());
        Identity::new(parts, &time).unwrap().verified().clone()
    };
    let mut all = vec![verified(authority.issue(&request, w.clock.now()).unwrap())];
    for _ in 0..renewals {
        w.clock.advance(Duration::from_secs(60));
        let next = authority.renew(&all[all.len() - 1], &request, w.clock.now());
        all.push(verified(next.unwrap()));
    }
    all
}

async fn listed(w: &World, id: &str) -> Vec<(String, String, Uuid, bool)> {
    let (rows, _) = w.auth.list_certificates(id, "", 100).await.unwrap();
    rows.into_iter()
        .map(|l| (l.row.serial, l.row.source, l.row.lineage, l.revoked))
        .collect()
}

#[tokio::test]
async fn certificates_issued_by_the_authority_itself_are_listed() {
    let w = world().await;
    let authority = w.auth.certificates().authority().unwrap();
    let automl = "spiffe://tars.local/automl";
    let made = managed(&w, "/automl", 2).await;
    let rows = listed(&w, automl).await;
    assert_eq!(rows.len(), 3, "{rows:?}");
    let newest = &made[2].certificate.serial;
    assert_eq!(rows[0].0, newest.as_str(), "newest first");
    assert!(
        rows.iter()
            .all(|r| r.1 == "authority" && r.2 == rows[0].2 && !r.3)
    );
    assert!(authority.journal().unwrap().is_empty(), "imported");
    // Importing again changes nothing, and the next start continues the lineage.
    w.auth.import_journal().await.unwrap();
    managed(&w, "/automl", 0).await;
    let rows = listed(&w, automl).await;
    assert_eq!(rows.len(), 4);
    assert!(
        rows.iter().all(|r| r.2 == rows[0].2),
        "one lineage: {rows:?}"
    );
    // Each certificate written to files starts a lineage of its own.
    let id = SpiffeId::new("tars.local", "/client/bot").unwrap();
    let request = Request::new(id.clone(), Duration::from_secs(60));
    for _ in 0..2 {
        authority.issue(&request, w.clock.now()).unwrap();
    }
    let rows = listed(&w, id.as_str()).await;
    assert_eq!(rows.len(), 2);
    assert!(rows[0].2 != rows[1].2 && rows.iter().all(|r| r.1 == "files"));
    let filter = crate::audit::Filter {
        event_type: "certificate.renewed".to_owned(),
        ..Default::default()
    };
    w.auth.sequence_once().await.unwrap();
    let (records, _) = w.auth.list_audit(&filter, "", 50).await.unwrap();
    assert_eq!(records.len(), 2);
}

#[tokio::test]
async fn the_authority_does_not_continue_a_revoked_lineage() {
    let w = world().await;
    let authority = Arc::clone(w.auth.certificates().authority().unwrap());
    authority.enforce(w.auth.certificates().feed.revocations.clone());
    let automl = "spiffe://tars.local/automl";
    let made = managed(&w, "/automl", 1).await;
    // Revoked by the first serial, together with the newest.
    let target = Target::Certificate {
        issuer: None,
        serial: made[0].certificate.serial.clone(),
    };
    let rows = w.auth.revoke(&ada(), &target, "stolen").await.unwrap();
    assert_eq!(rows.len(), 2);
    let id = SpiffeId::new("tars.local", "/automl").unwrap();
    let request = Request::new(id, Duration::from_secs(3600)).managed_by_authority();
    let refused = authority.renew(&made[1], &request, w.clock.now());
    assert!(matches!(refused, Err(tars_certs::CaError::Revoked(_))));
    // The next start begins another lineage, which is valid.
    let again = managed(&w, "/automl", 0).await;
    let rows = listed(&w, automl).await;
    assert_eq!(rows.iter().filter(|r| r.3).count(), 2, "{rows:?}");
    assert!(!w.auth.certificates().feed.revocations.denies(&again[0]));
    assert!(rows.iter().any(|r| !r.3 && r.2 != rows[rows.len() - 1].2));
}

#[tokio::test]
async fn a_renewal_during_the_revocation_of_its_lineage_is_revoked() {
    let w = world().await;
    let made = managed(&w, "/automl", 0).await;
    let authority = Arc::clone(w.auth.certificates().authority().unwrap());
    let id = SpiffeId::new("tars.local", "/automl").unwrap();
    let request = Request::new(id, Duration::from_secs(3600)).managed_by_authority();
    let target = Target::Certificate {
        issuer: None,
        serial: made[0].certificate.serial.clone(),
    };
    w.auth.revoke(&ada(), &target, "stolen").await.unwrap();
    // The authority does not know of the revocation yet, as when both happen at once.
    let raced = authority.renew(&made[0], &request, w.clock.now()).unwrap();
    w.auth.import_journal().await.unwrap();
    let list = w.auth.certificates().feed.revocations.current();
    assert!(list.certificates.contains(&raced.name));
}

#[tokio::test]
async fn a_rotation_does_not_wait_for_revoked_or_departed_processes() {
    let w = world().await;
    let auth = &w.auth;
    let (good, bad, gone) = (
        w.join("/automl").await,
        w.join("/hypersync").await,
        w.join("/gateway").await,
    );
    let report = async |of: &NewIdentity, instance: Uuid| {
        let roots = auth.certificates().authority().unwrap().root_infos();
        let keys: Vec<KeyId> = roots.iter().map(|r| r.key).collect();
        let told = auth.report_trust(&w.verified(of), instance, &keys).await;
        told.unwrap();
    };
    let [g, b, x] = [Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()];
    for (of, instance) in [(&good, g), (&bad, b), (&gone, x)] {
        report(of, instance).await;
    }
    auth.step_roots("ada", RotationStep::Prepare, false)
        .await
        .unwrap();
    w.refresh_own();
    let status = auth.roots().await.unwrap();
    assert_eq!(status.waiting_for.len(), 3, "{status:?}");
    // A revoked process is not waited for, whether its certificate or its identity is revoked.
    let target = Target::Certificate {
        issuer: None,
        serial: w.verified(&bad).certificate.serial,
    };
    auth.revoke(&ada(), &target, "stolen").await.unwrap();
    let status = auth.roots().await.unwrap();
    assert_eq!(status.waiting_for.len(), 2, "{status:?}");
    assert!(status.departed.is_empty());
    // A process that has been silent for long is listed as departed; one that is late is waited
    // for.
    w.clock.advance(Duration::from_secs(80));
    report(&good, g).await;
    assert!(auth.roots().await.unwrap().departed.is_empty());
    w.clock.advance(Duration::from_secs(11));
    let status = auth.roots().await.unwrap();
    assert!(status.waiting_for.is_empty(), "{status:?}");
    let [departed] = status.departed.as_slice() else {
        panic!("{status:?}");
    };
    assert!(
        departed.contains("/gateway") && departed.contains("last heard 91 s ago"),
        "{departed}"
    );
    assert!(departed.contains(&x.to_string()), "{departed}");
    auth.step_roots("ada", RotationStep::Activate, false)
        .await
        .unwrap();
    // Once it reports again, it is waited for.
    auth.step_roots("ada", RotationStep::Taint, false)
        .await
        .unwrap();
    w.refresh_own();
    report(&gone, x).await;
    let early = auth
        .step_roots("ada", RotationStep::Remove, false)
        .await
        .unwrap_err();
    assert!(
        matches!(&early, AuthError::PeersNotReady(n) if n.len() == 2),
        "{early}"
    );
}

#[tokio::test]
async fn a_rotation_does_not_wait_for_a_process_that_shut_down() {
    let w = world().await;
    let auth = &w.auth;
    let (peer, other) = (w.join("/automl").await, w.join("/hypersync").await);
    let (peer, other) = (w.verified(&peer), w.verified(&other));
    let [stopped, killed] = [Uuid::now_v7(), Uuid::now_v7()];
    for instance in [stopped, killed] {
        auth.report_trust(&peer, instance, &[]).await.unwrap();
    }
    auth.step_roots("ada", RotationStep::Prepare, false)
        .await
        .unwrap();
    w.refresh_own();
    let waits = async || auth.roots().await.unwrap().waiting_for;
    assert_eq!(waits().await.len(), 2);
    // No other identity can withdraw its report.
    auth.withdraw_trust(&other, stopped).await.unwrap();
    assert_eq!(waits().await.len(), 2);
    auth.withdraw_trust(&peer, stopped).await.unwrap();
    let [left] = &waits().await[..] else {
        panic!("{:?}", waits().await);
    };
    assert!(left.contains(&killed.to_string()), "{left}");
    assert!(auth.roots().await.unwrap().departed.is_empty());
}

#[tokio::test]
async fn a_certificate_reports_only_for_its_own_processes() {
    let w = world().await;
    let auth = &w.auth;
    let first = w.join("/automl").await;
    let (peer, thief) = (w.verified(&first), w.verified(&w.join("/automl").await));
    let instance = Uuid::now_v7();
    auth.report_trust(&peer, instance, &[]).await.unwrap();
    auth.step_roots("ada", RotationStep::Prepare, false)
        .await
        .unwrap();
    w.refresh_own();
    let waits = async || auth.roots().await.unwrap().waiting_for.len();
    assert_eq!(waits().await, 1);
    auth.withdraw_trust(&thief, instance).await.unwrap();
    assert_eq!(waits().await, 1, "its report cannot be withdrawn for it");
    let roots = auth.certificates().authority().unwrap().root_infos();
    let all: Vec<KeyId> = roots.iter().map(|r| r.key).collect();
    auth.report_trust(&thief, instance, &all).await.unwrap();
    assert_eq!(waits().await, 1, "nor can it be reported as ready");
    auth.withdraw_trust(&thief, instance).await.unwrap();
    assert_eq!(waits().await, 1);
    // A renewal is the same holder.
    let renewed = w.verified(&w.renew(&first).await.unwrap());
    auth.report_trust(&renewed, instance, &all).await.unwrap();
    assert_eq!(waits().await, 0);
    auth.withdraw_trust(&renewed, instance).await.unwrap();
    assert!(auth.store.reports(0).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_report_of_an_unrecorded_certificate_is_replaced_by_its_renewal() {
    let w = world().await;
    let auth = &w.auth;
    let first = w.join("/automl").await;
    let peer = w.verified(&first);
    let instance = Uuid::now_v7();
    // As an earlier version stored it.
    auth.report_trust(&peer, instance, &[]).await.unwrap();
    let name = peer.name();
    let mut tx = auth.store.begin("test.reports").await.unwrap();
    let holder = format!("{}:{}", name.issuer, name.serial);
    let old = Query::new("UPDATE trust_reports SET holder = $1").bind(holder);
    tx.execute(old).await.unwrap().one().unwrap();
    tx.commit().await.unwrap();
    let renewed = w.verified(&w.renew(&first).await.unwrap());
    auth.report_trust(&renewed, instance, &[]).await.unwrap();
    assert_eq!(auth.store.reports(0).await.unwrap().len(), 1);
    auth.withdraw_trust(&renewed, instance).await.unwrap();
    assert!(auth.store.reports(0).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_replaced_certificate_is_no_longer_invalidated() {
    let w = world().await;
    let auth = &w.auth;
    for _ in 0..2 {
        w.join("/client/c4").await;
    }
    auth.step_roots("ada", RotationStep::Prepare, false)
        .await
        .unwrap();
    w.refresh_own();
    auth.step_roots("ada", RotationStep::Activate, false)
        .await
        .unwrap();
    auth.step_roots("ada", RotationStep::Taint, false)
        .await
        .unwrap();
    w.refresh_own();
    let cut_off = async || auth.roots().await.unwrap().cut_off;
    assert_eq!(cut_off().await.len(), 1, "an identity counts once");
    let refused = auth.step_roots("ada", RotationStep::Remove, false).await;
    let said = refused.unwrap_err().to_string();
    let issue = "tars certs client c4 --out DIR --force";
    assert_eq!(said.matches(issue).count(), 1, "{said}");
    w.join("/client/c4").await;
    assert!(cut_off().await.is_empty());
    auth.step_roots("ada", RotationStep::Remove, false)
        .await
        .unwrap();
}
