//! Join tokens end with the permission of their creator, and with a revocation of their identity.

use super::{NOW, key_and_csr};
use crate::{AuthError, certificates::Target, testing::World};
use std::time::Duration;
use tars_certs::{
    SpiffeId,
    join::{JoinClaims, JoinKind, JoinToken},
};
use tars_credentials::Caller;

const PATH: &str = "/automl";

impl World {
    async fn token(&self, maker: &Caller) -> JoinToken {
        let made = self.auth.create_join_token(maker, PATH, None).await;
        made.unwrap().0
    }

    async fn shown(&self, token: &JoinToken) -> Result<(), AuthError> {
        let csr = key_and_csr().1;
        let shown = self.auth.issue_with_token(token.as_str(), &csr, "x").await;
        shown.map(drop)
    }

    async fn refuses(&self, token: &JoinToken) -> bool {
        matches!(self.shown(token).await, Err(AuthError::JoinToken))
    }

    async fn revoke(&self, by: &Caller, before: Option<Duration>) {
        let id = SpiffeId::new("tars.local", PATH).unwrap();
        let target = Target::Identity { id, before };
        self.auth.revoke(by, &target, "stolen").await.unwrap();
    }
}

#[tokio::test]
async fn a_token_ends_with_its_creators_account_and_permission() {
    let w = World::new().await;
    let (admin, eve) = (w.admin().await, w.user("eve", "admin").await);
    let (token, theirs) = (w.token(&eve).await, w.token(&admin).await);
    w.auth.set_disabled(&admin, "eve", true).await.unwrap();
    assert!(w.refuses(&token).await, "disabled");
    w.auth.set_disabled(&admin, "eve", false).await.unwrap();
    let roles = |role: &str| vec![role.to_owned()];
    w.auth
        .set_roles(&admin, "eve", roles("developer"))
        .await
        .unwrap();
    assert!(w.refuses(&token).await, "no longer permitted");
    w.auth
        .set_roles(&admin, "eve", roles("admin"))
        .await
        .unwrap();
    assert!(
        w.shown(&token).await.is_ok(),
        "a refusal does not use it up"
    );
    assert!(w.refuses(&token).await, "used");
    assert!(w.shown(&theirs).await.is_ok(), "another's");
}

#[tokio::test]
async fn a_token_ends_with_the_key_that_created_it() {
    let w = World::new().await;
    let admin = w.admin().await;
    let key = async || {
        let made = w.auth.create_key(&admin, "svc", &[], Some(1)).await;
        let key = made.unwrap();
        let caller = w.by_key(&key.text).unwrap();
        (key, caller)
    };
    let ((lost, maker), (_, other)) = (key().await, key().await);
    let (token, good) = (w.token(&maker).await, w.token(&other).await);
    w.auth.revoke_key(&admin, &lost.id, "lost").await.unwrap();
    assert!(w.refuses(&token).await);
    assert!(w.shown(&good).await.is_ok());
    let day = Duration::from_secs(86_400);
    let made = w.auth.create_join_token(&other, PATH, Some(day * 2)).await;
    w.clock.advance(day);
    assert!(w.refuses(&made.unwrap().0).await, "the key has ended");
}

#[tokio::test]
async fn revoking_an_identity_revokes_its_tokens() {
    let w = World::new().await;
    let admin = w.admin().await;
    let (before, spent) = (w.token(&admin).await, w.token(&admin).await);
    assert!(w.shown(&spent).await.is_ok());
    w.clock.advance(Duration::from_millis(200));
    w.revoke(&admin, None).await;
    assert!(w.refuses(&before).await, "in the same second");
    assert!(w.shown(&w.token(&admin).await).await.is_ok(), "anew");
}

#[tokio::test]
async fn a_past_revocation_spares_tokens_created_after_it() {
    let w = World::new().await;
    let admin = w.admin().await;
    let old = w.token(&admin).await;
    w.clock.advance(Duration::from_secs(120));
    let young = w.token(&admin).await;
    w.revoke(&admin, Some(NOW + Duration::from_secs(60))).await;
    assert!(w.refuses(&old).await);
    assert!(w.shown(&young).await.is_ok());
}

impl World {
    /// A token minted on the authority's files, valid for an hour.
    fn unrecorded(&self) -> JoinToken {
        let authority = self.auth.certificates().authority().unwrap();
        let (id, now) = (SpiffeId::new("tars.local", PATH), self.clock.now());
        let (kind, life) = (JoinKind::Unrecorded, Duration::from_secs(3600));
        let claims = JoinClaims::first(authority, kind, id.unwrap(), now, life);
        JoinToken::mint(authority, &claims)
    }
}

#[tokio::test]
async fn an_unrecorded_token_has_no_creator_to_lose() {
    let w = World::new().await;
    let token = w.unrecorded();
    assert!(w.shown(&token).await.is_ok());
    assert!(w.refuses(&token).await, "once");
}

#[tokio::test]
async fn an_unrecorded_token_ends_with_a_revocation_of_its_identity() {
    let w = World::new().await;
    let admin = w.admin().await;
    let tick = Duration::from_secs(1);
    let old = w.unrecorded();
    w.clock.advance(tick);
    let of_the_second = w.unrecorded();
    w.clock.advance(Duration::from_millis(500));
    w.revoke(&admin, None).await;
    assert!(w.refuses(&old).await && w.refuses(&of_the_second).await);
    w.clock.advance(tick);
    assert!(
        w.shown(&w.unrecorded()).await.is_ok(),
        "issued after the revocation"
    );
    assert!(w.refuses(&old).await, "for good");
}

#[tokio::test]
async fn an_unrecorded_token_from_the_future_is_refused() {
    let w = World::new().await;
    w.clock.step_forward(Duration::from_secs(600));
    let ahead = w.unrecorded();
    w.clock.step_back(Duration::from_secs(600));
    assert!(w.refuses(&ahead).await);
}

#[tokio::test]
async fn a_token_without_a_record_is_refused() {
    let w = World::new().await;
    let authority = w.auth.certificates().authority().unwrap();
    let id = |domain| SpiffeId::new(domain, PATH).unwrap();
    let mint = |kind, domain| {
        let life = Duration::from_secs(60);
        let claims = JoinClaims::first(authority, kind, id(domain), NOW, life);
        JoinToken::mint(authority, &claims)
    };
    assert!(w.refuses(&mint(JoinKind::First, "tars.local")).await);
    assert!(w.refuses(&mint(JoinKind::Rejoin, "tars.local")).await);
    assert!(w.refuses(&mint(JoinKind::Unrecorded, "other.local")).await);
    assert!(
        w.shown(&mint(JoinKind::Unrecorded, "tars.local"))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn of_concurrent_uses_of_a_token_one_succeeds() {
    let w = World::new().await;
    let token = w.token(&w.admin().await).await;
    let shown = futures_util::future::join_all((0..16).map(|_| w.shown(&token))).await;
    assert_eq!(shown.iter().filter(|s| s.is_ok()).count(), 1);
}

#[tokio::test]
async fn the_outstanding_tokens_of_a_credential_are_bounded() {
    let w = World::new().await;
    let (admin, eve) = (w.admin().await, w.user("eve", "admin").await);
    let made = async |by: &Caller| w.auth.create_join_token(by, PATH, None).await.map(drop);
    let first = w.token(&eve).await;
    w.clock.advance(Duration::from_secs(1));
    let refused = loop {
        if let Err(e) = made(&eve).await {
            break e;
        }
    };
    let AuthError::TooManyTokens(wait) = refused else {
        panic!("{refused}");
    };
    assert_eq!(wait, Duration::from_secs(599), "when the first expires");
    assert!(made(&admin).await.is_ok(), "another's");
    assert!(w.shown(&first).await.is_ok());
    assert!(made(&eve).await.is_ok(), "one that was used makes room");
    assert!(made(&eve).await.is_err());
    w.clock.advance(Duration::from_secs(601));
    assert!(made(&eve).await.is_ok(), "they have expired");
}
