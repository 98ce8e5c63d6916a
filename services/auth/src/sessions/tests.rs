use super::*;
use crate::testing::{PASSWORD, World, elsewhere, here as from, open};
use std::{sync::Arc, time::Duration};
use tars_credentials::GrantError;
use tars_runtime::{
    clock::Clock,
    db::{Fetch, Query},
};

#[tokio::test]
async fn every_failed_login_gets_the_same_answer() {
    let w = World::new().await;
    let auth = &w.auth;
    let view = &w.view;
    let password = &w.password;
    let (user, tokens) = auth.login("admin", password, &from()).await.unwrap();
    assert_eq!(user.roles, ["admin"]);
    assert_eq!(
        view.check_token(&tokens.access, auth.clock.now_s())
            .unwrap()
            .username,
        "admin"
    );
    for (name, word) in [
        ("admin", "wrong"),
        ("nobody", password.as_str()),
        ("Admin", password),
        ("", ""),
    ] {
        let refused = auth.login(name, word, &from()).await.unwrap_err();
        assert!(matches!(refused, AuthError::InvalidCredentials), "{name}");
    }
}

#[tokio::test]
async fn only_the_guesser_is_throttled() {
    let w = World::new().await;
    let auth = &w.auth;
    let clock = &w.clock;
    let password = &w.password;
    for _ in 0..5 {
        auth.login("admin", "guess", &from()).await.unwrap_err();
    }
    let waiting = auth.login("admin", password, &from()).await.unwrap_err();
    assert!(matches!(waiting, AuthError::Throttled(_)));
    assert!(auth.login("admin", password, &elsewhere()).await.is_ok());
    clock.advance(Duration::from_secs(1));
    assert!(auth.login("admin", password, &from()).await.is_ok());
}

#[tokio::test]
async fn a_wall_clock_step_neither_locks_out_nor_lets_in() {
    let hour = Duration::from_secs(3600);
    let w = World::new().await;
    let (auth, clock, password) = (&w.auth, &w.clock, &w.password);
    for _ in 0..5 {
        auth.login("admin", "guess", &from()).await.unwrap_err();
    }
    for step in [Clock::step_forward, Clock::step_back, Clock::step_back] {
        step(clock, hour);
        let waiting = auth.login("admin", password, &from()).await;
        assert!(matches!(waiting, Err(AuthError::Throttled(_))));
    }
    clock.advance(Duration::from_secs(1));
    let (_, first) = auth.login("admin", password, &from()).await.unwrap();
    let second = auth.refresh(&first.refresh, &from()).await.unwrap();
    clock.step_forward(hour);
    let repeat = auth.refresh(&first.refresh, &from()).await.unwrap();
    assert_eq!(second.refresh, repeat.refresh, "a lost reply, not a thief");
    clock.step_back(hour * 2);
    clock.advance(Duration::from_secs(11));
    assert!(
        auth.refresh(&first.refresh, &from()).await.is_err(),
        "a late repeat is theft, whatever the wall clock says"
    );
}

#[tokio::test]
async fn a_repeated_refresh_gets_the_same_successor_and_a_late_one_ends_the_session() {
    let w = World::new().await;
    let auth = &w.auth;
    let clock = &w.clock;
    let view = &w.view;
    let password = &w.password;
    let (_, first) = auth.login("admin", password, &from()).await.unwrap();
    let second = auth.refresh(&first.refresh, &from()).await.unwrap();
    let repeat = auth.refresh(&first.refresh, &from()).await.unwrap();
    assert_eq!(second.refresh, repeat.refresh);
    assert_ne!(first.refresh, second.refresh);
    let third = auth.refresh(&second.refresh, &from()).await.unwrap();
    clock.advance(Duration::from_secs(11));
    assert!(
        auth.refresh(&first.refresh, &from()).await.is_err(),
        "a late repeat is theft"
    );
    assert!(
        auth.refresh(&third.refresh, &from()).await.is_err(),
        "the whole family ended"
    );
    assert!(view.check_token(&third.access, clock.now_s()).is_err());
}

#[tokio::test]
async fn a_repeat_from_another_client_ends_the_session_at_once() {
    let w = World::new().await;
    let auth = &w.auth;
    let password = &w.password;
    let (_, first) = auth.login("admin", password, &from()).await.unwrap();
    let second = auth.refresh(&first.refresh, &from()).await.unwrap();
    assert!(auth.refresh(&first.refresh, &elsewhere()).await.is_err());
    assert!(auth.refresh(&second.refresh, &from()).await.is_err());
}

#[tokio::test]
async fn concurrent_refreshes_get_the_same_successor() {
    let w = World::new().await;
    let auth = &w.auth;
    let password = &w.password;
    let (_, first) = auth.login("admin", password, &from()).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (auth, token) = (Arc::clone(auth), first.refresh.clone());
        tasks.spawn(async move { auth.refresh(&token, &from()).await.unwrap().refresh });
    }
    let all = tasks.join_all().await;
    assert!(all.windows(2).all(|w| w[0] == w[1]));
}

#[tokio::test]
async fn logging_out_and_disabling_invalidate_tokens() {
    let w = World::new().await;
    let (auth, admin) = (&w.auth, w.admin().await);
    let (_, tokens) = auth.login("admin", &w.password, &from()).await.unwrap();
    let caller = w.view.check_token(&tokens.access, w.clock.now_s()).unwrap();
    auth.logout(&caller).await.unwrap();
    auth.logout(&caller).await.unwrap();
    assert!(!w.holds(&caller));
    assert!(auth.refresh(&tokens.refresh, &from()).await.is_err());

    let dev = w.user("dev", "developer").await;
    let (_, tokens) = auth.login("dev", PASSWORD, &from()).await.unwrap();
    auth.set_disabled(&admin, "dev", true).await.unwrap();
    assert!(!w.holds(&dev));
    assert!(w.view.check_token(&tokens.access, w.clock.now_s()).is_err());
    assert!(auth.login("dev", PASSWORD, &from()).await.is_err());
    assert!(auth.refresh(&tokens.refresh, &from()).await.is_err());
    auth.set_disabled(&admin, "dev", false).await.unwrap();
    assert!(
        auth.refresh(&tokens.refresh, &from()).await.is_err(),
        "old sessions stay ended"
    );
    assert!(!w.holds(&dev));
    assert!(auth.login("dev", PASSWORD, &from()).await.is_ok());
}

#[tokio::test]
async fn a_key_has_no_session_to_end() {
    let w = World::new().await;
    let admin = w.admin().await;
    let key = w.auth.create_key(&admin, "svc", &[], None).await.unwrap();
    let refused = w.auth.logout(&w.by_key(&key.text).unwrap()).await;
    let why = refused.unwrap_err();
    assert!(
        matches!(&why, AuthError::Grant(GrantError::NeedsSession)),
        "{why}"
    );
    assert!(w.by_key(&key.text).is_some() && w.holds(&admin));
}

#[tokio::test]
async fn ended_sessions_are_deleted_a_few_at_a_time() {
    let w = World::new().await;
    let rows = async || -> (i64, i64) {
        let mut db = w.auth.store.read("test.rows");
        let sessions = Query::new("SELECT COUNT(*) AS n FROM sessions");
        let tokens = Query::new("SELECT COUNT(*) AS n FROM refresh_tokens");
        (
            db.value(sessions, "n").await.unwrap(),
            db.value(tokens, "n").await.unwrap(),
        )
    };
    let (_, mut tokens) = w.auth.login("admin", &w.password, &from()).await.unwrap();
    for _ in 0..3 {
        tokens = w.auth.refresh(&tokens.refresh, &from()).await.unwrap();
    }
    w.auth.drop_ended_once().await.unwrap();
    assert_eq!(rows().await, (1, 4), "live sessions are kept");
    w.clock.advance(Duration::from_secs(40 * 86_400));
    w.auth.login("admin", &w.password, &from()).await.unwrap();
    w.auth.drop_ended_once().await.unwrap();
    assert_eq!(rows().await, (1, 1));
}

#[tokio::test]
async fn ended_sessions_stay_ended_after_a_restart() {
    let w = World::new().await;
    let auth = &w.auth;
    let clock = &w.clock;
    let view = &w.view;
    let password = &w.password;
    let (_, tokens) = auth.login("admin", password, &from()).await.unwrap();
    let caller = view.check_token(&tokens.access, clock.now_s()).unwrap();
    auth.logout(&caller).await.unwrap();
    auth.store.db().close().await;
    let (again, view, first) = open(w.dir.path(), clock).await;
    assert!(first.is_none(), "one administrator is enough");
    assert!(view.check_token(&tokens.access, clock.now_s()).is_err());
    assert!(again.login("admin", password, &from()).await.is_ok());
}

#[tokio::test]
async fn a_wall_clock_temporarily_ahead_neither_ends_nor_revives_a_session() {
    let ahead = DAY * 400;
    let w = World::new().await;
    let (_, kept) = w.auth.login("admin", &w.password, &from()).await.unwrap();
    let gone = w.admin().await;
    w.auth.logout(&gone).await.unwrap();
    w.clock.step_forward(ahead);
    w.auth.drop_ended_once().await.unwrap();
    let meanwhile = w.auth.snapshots.take().await.unwrap();
    w.clock.step_back(ahead);
    let view = tars_credentials::View::default();
    view.apply(&meanwhile, w.clock.now_s());
    assert!(!view.still_valid(&gone, w.clock.now_s()));
    assert!(view.check_token(&kept.access, w.clock.now_s()).is_ok());
    assert!(w.auth.refresh(&kept.refresh, &from()).await.is_ok());
}

#[tokio::test]
async fn an_access_token_ends_with_its_session_which_is_remembered_longer() {
    let w = World::new().await;
    let (_, mut tokens) = w.auth.login("admin", &w.password, &from()).await.unwrap();
    for _ in 0..4 {
        w.clock.advance(DAY * 6);
        tokens = w.auth.refresh(&tokens.refresh, &from()).await.unwrap();
        assert_eq!(tokens.expires_in_s, 900);
    }
    w.clock.advance(DAY * 6 - Duration::from_secs(600));
    tokens = w.auth.refresh(&tokens.refresh, &from()).await.unwrap();
    assert_eq!(tokens.expires_in_s, 600);
    let now = w.clock.now_s();
    let caller = w.view.check_token(&tokens.access, now).unwrap();
    assert_eq!(caller.expires_s, now + 600 + token::LEEWAY_S);
    w.auth.logout(&caller).await.unwrap();
    w.clock.advance(Duration::from_secs(601));
    w.auth.drop_ended_once().await.unwrap();
    let whole = w.auth.snapshots.take().await.unwrap();
    assert_eq!(whole.revoked_sessions.len(), 1);
}

#[tokio::test]
async fn a_concurrent_login_does_not_survive_a_password_change() {
    let w = World::new().await;
    let auth = &w.auth;
    let admin = w.admin().await;
    // As in a login that has verified the old password but not finished.
    let found = store::user_by_name(&mut auth.store.read("test.user"), "admin").await;
    let stale = found.unwrap().unwrap();
    assert!(auth.open_session(&stale, &elsewhere()).await.is_ok());
    auth.change_password(&admin, &from(), &w.password, "another long password")
        .await
        .unwrap();
    let late = auth.open_session(&stale, &elsewhere()).await;
    assert!(matches!(late, Err(AuthError::InvalidCredentials)));
}
