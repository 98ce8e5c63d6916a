//! Cuts of an identity in the past: what begins after them goes on.

use super::*;

const MINUTES: Duration = Duration::from_secs(300);

impl World {
    async fn cut(&self, path: &str, before: Duration) -> usize {
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
async fn a_cut_in_the_past_ends_what_begins_before_it_and_nothing_else() {
    let w = world().await;
    let old = w.join("/automl").await;
    w.clock.advance(2 * MINUTES);
    let young = w.join("/automl").await;
    assert_eq!(w.cut("/automl", NOW + MINUTES).await, 2, "the id and one");
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
async fn a_cut_before_everything_ends_nothing_and_takes_no_later_cut_back() {
    let w = world().await;
    let first = w.join("/automl").await;
    assert_eq!(w.cut("/automl", MINUTES).await, 1, "the id alone");
    assert!(!w.denied(&first));
    let second = w.renew(&first).await.unwrap();
    w.clock.advance(MINUTES);
    assert!(w.cut("/automl", w.clock.now()).await > 1, "now");
    assert!(w.denied(&second));
    let anew = w.join("/automl").await;
    assert_eq!(w.cut("/automl", NOW).await, 0, "cut already");
    let other = w.join("/automl").await;
    assert!(!w.denied(&anew) && !w.denied(&other));
    assert!(w.renew(&anew).await.is_ok());
}

#[tokio::test]
async fn of_a_lineage_with_both_only_the_certificate_after_the_cut_goes_on() {
    let w = world().await;
    let first = w.join("/automl").await;
    w.clock.advance(2 * MINUTES);
    let second = w.renew(&first).await.unwrap();
    w.cut("/automl", NOW + MINUTES).await;
    let stolen = w.renew(&first).await;
    assert!(matches!(stolen, Err(AuthError::LineageEnded)), "{stolen:?}");
    let stolen = w.rejoin(&first).await;
    assert!(matches!(stolen, Err(AuthError::JoinToken)), "{stolen:?}");
    assert!(w.rejoin(&second).await.is_ok());
}

#[tokio::test]
async fn what_the_list_of_the_process_does_not_have_yet_is_seen_in_the_database() {
    let w = world().await;
    let first = w.join("/automl").await;
    w.clock.advance(2 * MINUTES);
    let second = w.renew(&first).await.unwrap();
    w.cut("/automl", NOW + MINUTES).await;
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
