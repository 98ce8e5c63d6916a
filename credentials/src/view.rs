//! The pushed view of everything that is valid now: each process holds one, filled by Auth's watch
//! stream, and decides from it alone.
//!
//! Tokens whose user is not in the view yet are taken by their word: the stream carries every user
//! that was ever disabled or changed, so that absence means "new", not "gone".
//!
//! Users and keys carry a revision, and an older one never replaces a newer one, whatever order items
//! come in. That no item is missed is the [`Follower`](crate::Follower)'s to see.

use crate::{
    Caller, Credential, Permissions, apikey,
    token::{self, Claims, TokenError},
};
use arc_swap::ArcSwap;
use jsonwebtoken::DecodingKey;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use rpds::HashTrieMapSync;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};
use subtle::ConstantTimeEq;
use tars_proto::{
    Timestamp,
    auth::v1::{Jwk, KeyView, RoleView, SessionView, UserView, WatchCredentialsResponse},
};
use tokio::time::Instant;

const CACHED_TOKENS: usize = 16_384;
const LEEWAY: Duration = Duration::from_secs(token::LEEWAY_S);

/// A table that may be long. A copy shares all but the path to what is changed afterwards, so that
/// one change among a hundred thousand rows costs no more than among a hundred.
type Table<V> = HashTrieMapSync<String, V>;

#[derive(Clone, Default)]
struct Snapshot {
    keys: HashMap<String, Arc<DecodingKey>>,
    api_keys: Table<Arc<Key>>,
    users: Table<Arc<User>>,
    roles: HashMap<String, Permissions>,
    /// Session to the moment after which none of its tokens can be valid.
    revoked_sessions: Table<Gone>,
    /// When sessions were last looked through for those that can be forgotten.
    swept: Duration,
}

/// Looking through all revoked sessions is not for every change.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Key {
    /// Hash, and the second at which it stops working.
    secrets: Vec<(apikey::Hash, Option<u64>)>,
    owner_id: String,
    /// The most that the key may do. Without any it may do nothing.
    scopes: Permissions,
    expires_s: Option<u64>,
    revoked: bool,
    revision: u64,
}

#[derive(Debug)]
struct User {
    username: String,
    roles: Vec<String>,
    disabled: bool,
    /// Tokens with a lower one are refused, but for those of the kept session.
    version: u64,
    kept_session: String,
    revision: u64,
}

impl User {
    fn refuses(&self, version: u64, session: &str) -> bool {
        let outdated = version < self.version;
        self.disabled
            || (outdated && (self.kept_session.is_empty() || self.kept_session != session))
    }
}

impl Key {
    /// The secret with this hash, if it works now; otherwise `None`. Looks at every secret.
    fn secret(&self, hash: &apikey::Hash, now_s: u64) -> Option<Option<u64>> {
        find_secret(&self.secrets, hash, now_s)
    }
}

type Secrets = [(apikey::Hash, Option<u64>)];

/// When the secret with this hash stops working, `Some(None)` for never; `None` when there is no such
/// secret or it has stopped. In constant time for the number of secrets.
fn find_secret(secrets: &Secrets, hash: &apikey::Hash, now_s: u64) -> Option<Option<u64>> {
    let found = secrets.iter().fold(None, |found, (secret, until)| {
        if bool::from(secret.ct_eq(hash)) {
            Some(*until)
        } else {
            found
        }
    });
    found.filter(|until| is_live(*until, now_s))
}

fn is_live(until: Option<u64>, now_s: u64) -> bool {
    until.is_none_or(|end| now_s < end)
}

/// When a revoked session can be forgotten: when its end is over on the wall and by what was
/// measured. A wall that was set forward for a while must not revive it.
#[derive(Debug, Clone, Copy)]
struct Gone {
    wall_s: u64,
    measured: Duration,
}

impl Gone {
    fn is_over(self, now: Now) -> bool {
        let wall = self.wall_s.saturating_add(token::LEEWAY_S) <= now.wall_s;
        wall && self.measured.saturating_add(LEEWAY) <= now.measured
    }

    fn later(self, other: Self) -> Self {
        Self {
            wall_s: self.wall_s.max(other.wall_s),
            measured: self.measured.max(other.measured),
        }
    }
}

/// Both hands of the clock.
#[derive(Debug, Clone, Copy)]
struct Now {
    wall_s: u64,
    measured: Duration,
}

/// Time since an arbitrary beginning, by a hand that nobody can set.
type Elapsed = Box<dyn Fn() -> Duration + Send + Sync>;

struct Verified {
    kid: String,
    claims: Claims,
    /// Who that was, when this snapshot was looked at.
    caller: Mutex<Option<(Weak<Snapshot>, Arc<Caller>)>>,
}

/// Shared by everything in a process that checks credentials.
#[derive(Clone)]
pub struct View(Arc<Inner>);

struct Inner {
    snapshot: ArcSwap<Snapshot>,
    /// When something was last heard; `None` before the first whole view.
    heard: Mutex<Option<Duration>>,
    elapsed: Elapsed,
    cache: Cache<[u8; 32], Arc<Verified>>,
    update: Mutex<()>,
}

/// Measures with the timers' clock, which sleeps with the machine.
impl Default for View {
    fn default() -> Self {
        let start = Instant::now();
        Self::with_elapsed(move || start.elapsed())
    }
}

impl View {
    /// A view whose age is what `elapsed` says, time since an arbitrary beginning.
    pub fn with_elapsed(elapsed: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner {
            snapshot: ArcSwap::default(),
            heard: Mutex::new(None),
            elapsed: Box::new(elapsed),
            cache: Cache::new(CACHED_TOKENS),
            update: Mutex::new(()),
        }))
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0.snapshot.load();
        write!(
            f,
            "View({} keys, {} users, {} API keys)",
            s.keys.len(),
            s.users.size(),
            s.api_keys.size()
        )
    }
}

impl View {
    /// Applies one item of the watch stream.
    pub fn apply(&self, item: &WatchCredentialsResponse, now_s: u64) {
        let _one_writer = self.0.update.lock();
        if !item.reset && is_heartbeat(item) {
            return self.hear(false);
        }
        let mut next = if item.reset {
            Snapshot::default()
        } else {
            Snapshot::clone(&self.0.snapshot.load())
        };
        next.put_roles(&item.roles);
        next.put_keys(&item.keys, &item.removed_kids);
        next.put_api_keys(&item.api_keys);
        next.put_users(&item.users);
        let measured = (self.0.elapsed)();
        let now = Now {
            wall_s: now_s,
            measured,
        };
        next.put_sessions(&item.revoked_sessions, now);
        self.0.snapshot.store(Arc::new(next));
        self.hear(item.reset);
    }

    /// Something was heard, and nothing has changed.
    pub(crate) fn heard(&self) {
        self.hear(false);
    }

    /// Only a whole view starts the clock.
    fn hear(&self, whole: bool) {
        let mut heard = self.0.heard.lock();
        if whole || heard.is_some() {
            *heard = Some((self.0.elapsed)());
        }
    }

    /// How old the view is; `None` before the first whole one.
    pub fn age(&self) -> Option<Duration> {
        let heard = *self.0.heard.lock();
        heard.map(|at| (self.0.elapsed)().saturating_sub(at))
    }

    /// Who holds this access token.
    pub fn check_token(&self, text: &str, now_s: u64) -> Result<Arc<Caller>, TokenError> {
        let snapshot = self.0.snapshot.load();
        let digest: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        let verified = match self.0.cache.get(&digest) {
            Some(hit) if snapshot.keys.contains_key(&hit.kid) => hit,
            _ => {
                let fresh = Arc::new(snapshot.verify(text)?);
                token::check_time(&fresh.claims, now_s)?;
                self.0.cache.insert(digest, Arc::clone(&fresh));
                fresh
            }
        };
        // Its begin was seen to be over once: a clock that is set back does not bring it again.
        token::check_end(&verified.claims, now_s)?;
        let mut known = verified.caller.lock();
        if let Some((seen, caller)) = known.as_ref()
            && std::ptr::eq(seen.as_ptr(), Arc::as_ptr(&snapshot))
        {
            return Ok(Arc::clone(caller));
        }
        let caller = Arc::new(snapshot.caller_of(&verified.claims)?);
        *known = Some((Arc::downgrade(&snapshot), Arc::clone(&caller)));
        Ok(caller)
    }

    /// Who holds this API key; `None` for every kind of refusal.
    pub fn check_api_key(&self, text: &str, now_s: u64) -> Option<Caller> {
        let (id, hash) = apikey::parse(text)?;
        let snapshot = self.0.snapshot.load();
        let key = snapshot.api_keys.get(id);
        // An unknown id costs the same comparison as a known one.
        let dummy = [([0u8; 32], None)];
        let secrets = key.map_or(dummy.as_slice(), |k| k.secrets.as_slice());
        let proven = find_secret(secrets, &hash, now_s);
        let key = key.filter(|k| !k.revoked && is_live(k.expires_s, now_s))?;
        let until = proven?;
        let owner = snapshot.users.get(&key.owner_id).filter(|u| !u.disabled)?;
        let ends = [until, key.expires_s].into_iter().flatten().min();
        Some(Caller {
            owner_id: key.owner_id.clone(),
            username: owner.username.clone(),
            roles: owner.roles.clone(),
            permissions: snapshot.permissions(&owner.roles).intersect(key.scopes),
            credential: Credential::ApiKey {
                id: id.to_owned(),
                secret: hash,
            },
            label: format!("key:{id}"),
            version: owner.version,
            expires_s: ends.unwrap_or(u64::MAX),
        })
    }

    /// Whether the credential behind a caller still holds; for streams, which outlast their start.
    pub fn still_valid(&self, caller: &Caller, now_s: u64) -> bool {
        if now_s >= caller.expires_s {
            return false;
        }
        let snapshot = self.0.snapshot.load();
        match &caller.credential {
            Credential::Session { id } => snapshot.session_holds(caller, id),
            Credential::ApiKey { id, secret } => snapshot.key_holds(caller, id, secret, now_s),
        }
    }

    /// Roles that exist.
    pub fn roles(&self) -> BTreeSet<String> {
        self.0.snapshot.load().roles.keys().cloned().collect()
    }
}

/// Nothing of ours changed: the snapshot stays as it is, and with it what was worked out from it.
fn is_heartbeat(item: &WatchCredentialsResponse) -> bool {
    item.keys.is_empty()
        && item.api_keys.is_empty()
        && item.users.is_empty()
        && item.revoked_sessions.is_empty()
        && item.roles.is_empty()
        && item.removed_kids.is_empty()
}

impl Snapshot {
    fn verify(&self, text: &str) -> Result<Verified, TokenError> {
        let kid = token::key_id(text)?;
        let key = self.keys.get(&kid).ok_or(TokenError::UnknownKey)?;
        Ok(Verified {
            claims: token::verify(text, key)?,
            kid,
            caller: Mutex::new(None),
        })
    }

    fn caller_of(&self, claims: &Claims) -> Result<Caller, TokenError> {
        if self.revoked_sessions.contains_key(&claims.sid) {
            return Err(TokenError::Revoked);
        }
        let user = self.users.get(&claims.sub);
        if user.is_some_and(|u| u.refuses(claims.ver, &claims.sid)) {
            return Err(TokenError::Revoked);
        }
        let roles = user.map_or(&claims.roles, |u| &u.roles);
        Ok(Caller {
            owner_id: claims.sub.clone(),
            username: claims.username.clone(),
            roles: roles.clone(),
            permissions: self.permissions(roles),
            credential: Credential::Session {
                id: claims.sid.clone(),
            },
            label: format!("user:{}", claims.username),
            version: user.map_or(claims.ver, |u| u.version),
            expires_s: claims.exp.saturating_add(token::LEEWAY_S),
        })
    }

    fn session_holds(&self, caller: &Caller, session: &str) -> bool {
        let user = self.users.get(&caller.owner_id);
        let refused = user.is_some_and(|u| u.refuses(caller.version, session));
        !refused && !self.revoked_sessions.contains_key(session)
    }

    /// A key does not end with its owner's sessions; it does with what it was let in for.
    fn key_holds(&self, caller: &Caller, id: &str, secret: &apikey::Hash, now_s: u64) -> bool {
        let owner = self.users.get(&caller.owner_id).filter(|u| !u.disabled);
        let key = self.api_keys.get(id).filter(|k| !k.revoked);
        let (Some(owner), Some(key)) = (owner, key) else {
            return false;
        };
        let held = self.permissions(&owner.roles).intersect(key.scopes);
        key.secret(secret, now_s).is_some() && caller.permissions.without(held).is_empty()
    }

    fn permissions(&self, roles: &[String]) -> Permissions {
        roles
            .iter()
            .filter_map(|r| self.roles.get(r))
            .fold(Permissions::default(), |all, p| all.union(*p))
    }

    fn put_roles(&mut self, roles: &[RoleView]) {
        for role in roles {
            let permissions = Permissions::of(role.permissions.iter().map(String::as_str));
            self.roles.insert(role.name.clone(), permissions);
        }
    }

    fn put_keys(&mut self, keys: &[Jwk], removed: &[String]) {
        for jwk in keys {
            match DecodingKey::from_ed_components(&jwk.x) {
                Ok(key) => drop(self.keys.insert(jwk.kid.clone(), Arc::new(key))),
                Err(e) => {
                    tracing::error!(kid = jwk.kid, error = %e, "a pushed signing key does not parse");
                }
            }
        }
        for kid in removed {
            self.keys.remove(kid);
        }
    }

    fn put_api_keys(&mut self, keys: &[KeyView]) {
        for view in keys {
            let known = self.api_keys.get(&view.key_id);
            if known.is_some_and(|k| k.revision > view.revision) {
                continue;
            }
            let secrets = view
                .secrets
                .iter()
                .filter_map(|s| {
                    Some((
                        s.sha256.as_slice().try_into().ok()?,
                        s.expires_at.as_ref().map(seconds),
                    ))
                })
                .collect();
            let key = Key {
                secrets,
                owner_id: view.owner_id.clone(),
                scopes: Permissions::of(view.scopes.iter().map(String::as_str)),
                expires_s: view.expires_at.as_ref().map(seconds),
                revoked: view.revoked,
                revision: view.revision,
            };
            self.api_keys.insert_mut(view.key_id.clone(), Arc::new(key));
        }
    }

    fn put_users(&mut self, users: &[UserView]) {
        for view in users {
            let known = self.users.get(&view.user_id);
            if known.is_some_and(|u| u.revision > view.revision) {
                continue;
            }
            let user = User {
                username: view.username.clone(),
                roles: view.roles.clone(),
                disabled: view.disabled,
                version: view.version,
                kept_session: view.kept_session.clone(),
                revision: view.revision,
            };
            self.users.insert_mut(view.user_id.clone(), Arc::new(user));
        }
    }

    fn put_sessions(&mut self, sessions: &[SessionView], now: Now) {
        if now.measured >= self.swept.saturating_add(SWEEP_EVERY) {
            self.sweep_sessions(now);
        }
        for view in sessions {
            let wall_s = view.expires_at.as_ref().map_or(u64::MAX, seconds);
            let left = Duration::from_secs(wall_s.saturating_sub(now.wall_s));
            let measured = now.measured.saturating_add(left);
            let gone = Gone { wall_s, measured };
            let known = self.revoked_sessions.get(&view.session_id);
            let gone = known.map_or(gone, |known| known.later(gone));
            self.revoked_sessions
                .insert_mut(view.session_id.clone(), gone);
        }
    }

    fn sweep_sessions(&mut self, now: Now) {
        let over = self.revoked_sessions.iter();
        let over = over.filter(|(_, gone)| gone.is_over(now));
        let over: Vec<String> = over.map(|(session, _)| session.clone()).collect();
        for session in &over {
            self.revoked_sessions.remove_mut(session);
        }
        self.swept = now.measured;
    }
}

fn seconds(at: &Timestamp) -> u64 {
    u64::try_from(at.seconds).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PERMISSIONS;
    use tars_proto::auth::v1::SecretView;

    const NOW: u64 = 1_000_000;

    fn user(disabled: bool) -> UserView {
        UserView {
            user_id: "u".into(),
            username: "ada".into(),
            roles: vec!["viewer".into()],
            disabled,
            version: 1,
            ..Default::default()
        }
    }

    fn at(seconds: u64) -> Option<Timestamp> {
        Some(Timestamp {
            seconds: i64::try_from(seconds).unwrap(),
            nanos: 0,
        })
    }

    fn key_view(key: &apikey::ApiKey, expires: Option<u64>) -> KeyView {
        KeyView {
            key_id: key.id.clone(),
            secrets: vec![SecretView {
                sha256: key.hash.to_vec(),
                expires_at: expires.and_then(at),
            }],
            owner_id: "u".into(),
            scopes: vec!["agents.read".into(), "users.write".into()],
            expires_at: at(NOW + 100),
            revoked: false,
            revision: 1,
        }
    }

    fn push(view: &View, item: WatchCredentialsResponse) {
        view.apply(&item, NOW);
    }

    fn session(id: &str, version: u64) -> Caller {
        Caller {
            owner_id: "u".into(),
            username: "ada".into(),
            roles: vec!["viewer".into()],
            permissions: Permissions::default(),
            credential: Credential::Session { id: id.into() },
            label: "user:ada".into(),
            version,
            expires_s: NOW + 100,
        }
    }

    #[test]
    fn what_is_older_never_replaces_what_is_newer() {
        let key = apikey::ApiKey::generate();
        let v = view(&key);
        let users = |revision, disabled| WatchCredentialsResponse {
            users: vec![UserView {
                revision,
                ..user(disabled)
            }],
            ..Default::default()
        };
        push(&v, users(3, true));
        push(&v, users(2, false));
        assert!(
            v.check_api_key(&key.text, NOW).is_none(),
            "disabled stays disabled"
        );
        push(&v, users(4, false));
        assert!(v.check_api_key(&key.text, NOW).is_some());
        let keys = |revision, revoked| WatchCredentialsResponse {
            api_keys: vec![KeyView {
                revision,
                revoked,
                ..key_view(&key, None)
            }],
            ..Default::default()
        };
        push(&v, keys(3, true));
        push(&v, keys(2, false));
        assert!(
            v.check_api_key(&key.text, NOW).is_none(),
            "revoked stays revoked"
        );
        let session = |until| WatchCredentialsResponse {
            revoked_sessions: vec![SessionView {
                session_id: "s".into(),
                expires_at: at(until),
            }],
            ..Default::default()
        };
        push(&v, session(NOW + 50));
        push(&v, session(NOW + 10));
        let later = WatchCredentialsResponse {
            users: vec![UserView {
                revision: 5,
                ..user(false)
            }],
            ..Default::default()
        };
        v.apply(&later, NOW + 49);
        assert!(!v.still_valid(&self::session("s", 1), NOW));
    }

    #[test]
    fn only_the_session_that_changed_the_password_outlives_the_change() {
        let v = view(&apikey::ApiKey::generate());
        let changed = UserView {
            version: 2,
            revision: 2,
            kept_session: "mine".into(),
            ..user(false)
        };
        push(
            &v,
            WatchCredentialsResponse {
                users: vec![changed.clone()],
                ..Default::default()
            },
        );
        assert!(v.still_valid(&session("mine", 1), NOW));
        assert!(!v.still_valid(&session("other", 1), NOW));
        assert!(!v.still_valid(&session("", 1), NOW));
        assert!(v.still_valid(&session("other", 2), NOW), "a login since");
        let roles = UserView {
            version: 3,
            revision: 3,
            kept_session: String::new(),
            ..changed
        };
        push(
            &v,
            WatchCredentialsResponse {
                users: vec![roles],
                ..Default::default()
            },
        );
        assert!(!v.still_valid(&session("mine", 1), NOW));
        assert!(
            !v.still_valid(&session("", 1), NOW),
            "no session is no kept session"
        );
    }

    #[test]
    fn what_a_key_opened_ends_with_its_secret_and_with_what_it_was_let_in_for() {
        let old = apikey::ApiKey::generate();
        let v = view(&old);
        let caller = v.check_api_key(&old.text, NOW).unwrap();
        let sessions_ended = UserView {
            version: 2,
            revision: 2,
            ..user(false)
        };
        push(
            &v,
            WatchCredentialsResponse {
                users: vec![sessions_ended],
                ..Default::default()
            },
        );
        assert!(v.still_valid(&caller, NOW), "a key is no session");
        let demoted = UserView {
            revision: 3,
            roles: vec![],
            ..user(false)
        };
        push(
            &v,
            WatchCredentialsResponse {
                users: vec![demoted],
                ..Default::default()
            },
        );
        assert!(!v.still_valid(&caller, NOW));

        let v = view(&old);
        let new = KeyView {
            revision: 2,
            ..key_view(&apikey::ApiKey::with_id(&old.id), None)
        };
        push(
            &v,
            WatchCredentialsResponse {
                api_keys: vec![new],
                ..Default::default()
            },
        );
        assert!(!v.still_valid(&caller, NOW), "its secret was replaced");
    }

    #[test]
    fn a_key_without_scopes_may_do_nothing_and_a_role_that_grows_does_not_widen_one() {
        let key = apikey::ApiKey::generate();
        let v = view(&key);
        let none = KeyView {
            scopes: vec![],
            revision: 2,
            ..key_view(&key, None)
        };
        push(
            &v,
            WatchCredentialsResponse {
                api_keys: vec![none],
                ..Default::default()
            },
        );
        let caller = v.check_api_key(&key.text, NOW).unwrap();
        assert_eq!(caller.permissions, Permissions::default());

        let v = view(&key);
        let grown = RoleView {
            name: "viewer".into(),
            permissions: PERMISSIONS.iter().map(|p| (*p).to_owned()).collect(),
        };
        push(
            &v,
            WatchCredentialsResponse {
                roles: vec![grown],
                ..Default::default()
            },
        );
        let caller = v.check_api_key(&key.text, NOW).unwrap();
        assert_eq!(
            caller.permissions.names(),
            ["agents.read", "users.write"],
            "its scopes"
        );
    }

    fn view(key: &apikey::ApiKey) -> View {
        let view = View::default();
        let item = WatchCredentialsResponse {
            sequence: 1,
            reset: true,
            users: vec![user(false)],
            api_keys: vec![key_view(key, None)],
            roles: vec![RoleView {
                name: "viewer".into(),
                permissions: vec!["agents.read".into(), "session.self".into()],
            }],
            ..Default::default()
        };
        view.apply(&item, NOW);
        view
    }

    #[test]
    fn scopes_narrow_and_never_widen() {
        let key = apikey::ApiKey::generate();
        let caller = view(&key).check_api_key(&key.text, NOW).unwrap();
        assert_eq!(caller.permissions.names(), ["agents.read"]);
        assert_eq!(
            (caller.owner_id.as_str(), caller.username.as_str()),
            ("u", "ada")
        );
    }

    #[test]
    fn a_key_ends_with_its_time_its_owner_and_its_revocation() {
        let key = apikey::ApiKey::generate();
        let v = view(&key);
        assert!(v.check_api_key(&key.text, NOW + 100).is_none());
        assert!(
            v.check_api_key(&apikey::ApiKey::with_id(&key.id).text, NOW)
                .is_none()
        );
        assert!(
            v.check_api_key(&apikey::ApiKey::generate().text, NOW)
                .is_none()
        );
        v.apply(
            &WatchCredentialsResponse {
                users: vec![user(true)],
                ..Default::default()
            },
            NOW,
        );
        assert!(v.check_api_key(&key.text, NOW).is_none());

        let v = view(&key);
        let caller = v.check_api_key(&key.text, NOW).unwrap();
        assert!(v.still_valid(&caller, NOW));
        assert!(!v.still_valid(&caller, NOW + 100), "expired");
        let revoked = KeyView {
            revoked: true,
            ..key_view(&key, None)
        };
        v.apply(
            &WatchCredentialsResponse {
                api_keys: vec![revoked],
                ..Default::default()
            },
            NOW,
        );
        assert!(v.check_api_key(&key.text, NOW).is_none());
        assert!(!v.still_valid(&caller, NOW));
    }

    #[test]
    fn an_old_secret_works_until_its_overlap_ends() {
        let (old, v) = (apikey::ApiKey::generate(), View::default());
        let new = apikey::ApiKey::with_id(&old.id);
        let mut both = key_view(&new, None);
        both.secrets.push(SecretView {
            sha256: old.hash.to_vec(),
            expires_at: at(NOW + 10),
        });
        v.apply(
            &WatchCredentialsResponse {
                reset: true,
                users: vec![user(false)],
                api_keys: vec![both],
                ..Default::default()
            },
            NOW,
        );
        assert!(v.check_api_key(&old.text, NOW + 9).is_some());
        assert!(v.check_api_key(&old.text, NOW + 10).is_none());
        assert!(v.check_api_key(&new.text, NOW + 10).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_that_was_set_forward_for_a_while_revives_no_session() {
        let v = view(&apikey::ApiKey::generate());
        let revoked = WatchCredentialsResponse {
            revoked_sessions: vec![SessionView {
                session_id: "s".into(),
                expires_at: at(NOW + 900),
            }],
            ..Default::default()
        };
        v.apply(&revoked, NOW);
        let something = || WatchCredentialsResponse {
            removed_kids: vec!["k".into()],
            ..Default::default()
        };
        tokio::time::advance(SWEEP_EVERY).await;
        v.apply(&something(), NOW + 7200);
        assert!(!v.still_valid(&session("s", 1), NOW), "set back since");
        tokio::time::advance(Duration::from_secs(1000)).await;
        v.apply(&something(), NOW);
        assert!(!v.still_valid(&session("s", 1), NOW), "early on the wall");
        tokio::time::advance(SWEEP_EVERY).await;
        v.apply(&something(), NOW + 1000);
        assert!(v.0.snapshot.load().revoked_sessions.is_empty(), "forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn age_counts_from_what_was_heard_last() {
        let v = View::default();
        assert_eq!(v.age(), None);
        v.apply(&WatchCredentialsResponse::default(), NOW);
        assert_eq!(
            v.age(),
            None,
            "a delta before the first whole view counts for nothing"
        );
        v.apply(
            &WatchCredentialsResponse {
                reset: true,
                ..Default::default()
            },
            NOW,
        );
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(v.age(), Some(Duration::from_secs(3)));
    }
}
