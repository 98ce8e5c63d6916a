//! Revocations of an identity as of a moment in the past spare what begins later.

use super::*;

const MINUTES: Duration = Duration::from_secs(300);

impl World {
    async fn revoke_before(&self, path: &str, before: Duration) -> usize {
        let target = Target::Identity {
            id: SpiffeId::new("tars.local", path).unwrap(),
            before: Some(before),
        };
        self.auth
            .revoke(&ada(), &target, "stolen")
            .await
            .unwrap()
            .len()
    }

    async fn rejoin(&self, of: &NewIdentity) -> Result<NewIdentity, AuthError> {
        let csr = key_and_csr().1;
        self.auth
            .issue_with_token(of.rejoin.as_str(), &csr, "x")
            .await
    }

    async fn listed_as_revoked(&self) -> Vec<String> {
        let (listed, _) = self.auth.list_certificates("", "", 50).await.unwrap();
        let revoked = listed.into_iter().filter(|l| l.revoked);
        revoked.map(|l| l.row.serial).collect()
    }
}

#[tokio::test]
async fn a_past_revocation_covers_only_what_begins_before_it() {
    let w = world().await;
    let old = w.join("/automl").await;
    w.clock.advance(2 * MINUTES);
    let young = w.join("/automl").await;
    assert_eq!(
        w.revoke_before("/automl", NOW + MINUTES).await,
        2,
        "the id and one"
    );
    let serial = w.verified(&old).certificate.serial.to_string();
    assert_eq!(w.listed_as_revoked().await, [serial]);
    assert!(w.denied(&old) && !w.denied(&young));
    for ended in [w.renew(&old).await, w.rejoin(&old).await] {
        assert!(matches!(ended, Err(AuthError::LineageEnded)), "{ended:?}");
    }
    let next = w.renew(&young).await.unwrap();
    let back = w.rejoin(&next).await.unwrap();
    assert!(!w.denied(&next) && !w.denied(&back));
}

#[tokio::test]
async fn an_earlier_revocation_does_not_undo_a_later_one() {
    let w = world().await;
    let first = w.join("/automl").await;
    assert_eq!(w.revoke_before("/automl", MINUTES).await, 1, "the id alone");
    assert!(!w.denied(&first));
    let second = w.renew(&first).await.unwrap();
    w.clock.advance(MINUTES);
    assert!(w.revoke_before("/automl", w.clock.now()).await > 1, "now");
    assert!(w.denied(&second));
    let anew = w.join("/automl").await;
    assert_eq!(w.revoke_before("/automl", NOW).await, 0, "already revoked");
    let other = w.join("/automl").await;
    assert!(!w.denied(&anew) && !w.denied(&other));
    assert!(w.renew(&anew).await.is_ok());
}

#[tokio::test]
async fn in_a_lineage_the_certificate_after_the_revocation_remains_valid() {
    let w = world().await;
    let first = w.join("/automl").await;
    w.clock.advance(2 * MINUTES);
    let second = w.renew(&first).await.unwrap();
    w.revoke_before("/automl", NOW + MINUTES).await;
    let stolen = w.renew(&first).await;
    assert!(matches!(stolen, Err(AuthError::LineageEnded)), "{stolen:?}");
    let stolen = w.rejoin(&first).await;
    assert!(matches!(stolen, Err(AuthError::JoinToken)), "{stolen:?}");
    assert!(w.rejoin(&second).await.is_ok());
}

#[tokio::test]
async fn a_revocation_missing_from_the_pushed_list_is_found_in_the_database() {
    let w = world().await;
    let first = w.join("/automl").await;
    w.clock.advance(2 * MINUTES);
    let second = w.renew(&first).await.unwrap();
    w.revoke_before("/automl", NOW + MINUTES).await;
    let list = &w.auth.certificates().feed.revocations;
    list.update(|set| {
        set.identities.clear();
        set.certificates.clear();
    });
    assert!(!w.denied(&first));
    let late = w.renew(&first).await;
    assert!(matches!(late, Err(AuthError::LineageEnded)), "{late:?}");
    assert!(w.renew(&second).await.is_ok());
}
