//! The pushed view of everything that is valid now. Each process holds one, fed by Auth's watch
//! stream, and decides from it alone.
//!
//! A token whose user is not in the view is accepted on its own claims: the stream carries every
//! user that was ever disabled or changed, so an absent user is a new one.
//!
//! Users and keys carry a revision, and an older one never replaces a newer one, whatever the order
//! of items. Detecting missing items is the job of the [`Follower`](crate::Follower).

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

/// A table with many rows. Copies share everything except the path to later changes, so a change
/// among a hundred thousand rows costs no more than one among a hundred.
type Table<V> = HashTrieMapSync<String, V>;

#[derive(Clone, Default)]
struct Snapshot {
    keys: HashMap<String, Arc<DecodingKey>>,
    api_keys: Table<Arc<Key>>,
    users: Table<Arc<User>>,
    roles: HashMap<String, Permissions>,
    /// Revoked sessions, with the moment after which none of their tokens can be valid.
    revoked_sessions: Table<RevokedUntil>,
    /// When the sessions were last swept.
    swept: Duration,
}

/// How often expired entries are removed from the revoked sessions; a scan is too slow for every
/// change.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Key {
    /// The hashes of its secrets, and the second at which each expires.
    secrets: Vec<(apikey::Hash, Option<u64>)>,
    owner_id: String,
    /// The upper bound of what the key may do. An empty set permits nothing.
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
    /// Tokens with a lower version are rejected, except those of `kept_session`.
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
    /// The expiry of the secret with this hash, if it is valid now. Compares with every secret.
    fn secret(&self, hash: &apikey::Hash, now_s: u64) -> Option<Option<u64>> {
        find_secret(&self.secrets, hash, now_s)
    }
}

type Secrets = [(apikey::Hash, Option<u64>)];

/// The expiry of the secret with this hash, where `Some(None)` is never; `None` when there is no
/// such secret or it has expired. Takes constant time for a given number of secrets.
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

/// When a revoked session can be forgotten: once it has ended both by the wall clock and by
/// measured time. A wall clock that is temporarily set forward must not revive it.
#[derive(Debug, Clone, Copy)]
struct RevokedUntil {
    wall_s: u64,
    measured: Duration,
}

impl RevokedUntil {
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

/// The current time by both clocks.
#[derive(Debug, Clone, Copy)]
struct Now {
    wall_s: u64,
    measured: Duration,
}

/// Measured time since an arbitrary start, which nobody can set.
type Elapsed = Box<dyn Fn() -> Duration + Send + Sync>;

struct Verified {
    kid: String,
    claims: Claims,
    /// The caller, as resolved against the snapshot that is referenced beside it.
    caller: Mutex<Option<(Weak<Snapshot>, Arc<Caller>)>>,
}

/// The view of a process. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct View(Arc<Inner>);

struct Inner {
    snapshot: ArcSwap<Snapshot>,
    /// When the last item was received; `None` before the first snapshot.
    received: Mutex<Option<Duration>>,
    elapsed: Elapsed,
    cache: Cache<[u8; 32], Arc<Verified>>,
    update: Mutex<()>,
}

/// Measures age with tokio's clock, which stops while the machine is suspended.
impl Default for View {
    fn default() -> Self {
        let start = Instant::now();
        Self::with_elapsed(move || start.elapsed())
    }
}

impl View {
    /// A view whose age is measured by `elapsed`, the time since an arbitrary start.
    pub fn with_elapsed(elapsed: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner {
            snapshot: ArcSwap::default(),
            received: Mutex::new(None),
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
            return self.touch(false);
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
        self.touch(item.reset);
    }

    /// Records that the stream is alive, without a change.
    pub(crate) fn refresh(&self) {
        self.touch(false);
    }

    /// Only a snapshot starts the clock.
    fn touch(&self, snapshot: bool) {
        let mut received = self.0.received.lock();
        if snapshot || received.is_some() {
            *received = Some((self.0.elapsed)());
        }
    }

    /// The time since the last item; `None` before the first snapshot.
    pub fn age(&self) -> Option<Duration> {
        let received = *self.0.received.lock();
        received.map(|at| (self.0.elapsed)().saturating_sub(at))
    }

    /// The caller that holds this access token.
    ///
    /// # Errors
    ///
    /// [`TokenError`], which must not be disclosed to the caller.
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
        // The start was checked when the token was first seen: setting the clock back does not undo
        // that.
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

    /// The caller that holds this API key; `None` for any reason of rejection.
    pub fn check_api_key(&self, text: &str, now_s: u64) -> Option<Caller> {
        let (id, hash) = apikey::parse(text)?;
        let snapshot = self.0.snapshot.load();
        let key = snapshot.api_keys.get(id);
        // An unknown id takes as long to reject as a known one.
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

    /// Whether the credential of a caller is still valid; for streams, which outlive their
    /// authentication.
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

    /// Those of these that are neither the name nor the id of a user.
    pub fn strangers<'a>(&self, named: impl Iterator<Item = &'a String>) -> BTreeSet<&'a str> {
        let users = &self.0.snapshot.load().users;
        let mut strangers: BTreeSet<&str> = named
            .filter(|who| !users.contains_key(*who))
            .map(String::as_str)
            .collect();
        if !strangers.is_empty() {
            for user in users.values() {
                strangers.remove(user.username.as_str());
            }
        }
        strangers
    }

    /// Whether there is an API key with this id, valid or not.
    pub fn has_key(&self, id: &str) -> bool {
        self.0.snapshot.load().api_keys.contains_key(id)
    }

    /// The names of the roles that exist.
    pub fn roles(&self) -> BTreeSet<String> {
        self.0.snapshot.load().roles.keys().cloned().collect()
    }
}

/// A heartbeat leaves the snapshot, and what is cached for it, in place.
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

    /// A key does not end with its owner's sessions, but with the permissions it was admitted with.
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
            let until = RevokedUntil { wall_s, measured };
            let known = self.revoked_sessions.get(&view.session_id);
            let until = known.map_or(until, |known| known.later(until));
            self.revoked_sessions
                .insert_mut(view.session_id.clone(), until);
        }
    }

    fn sweep_sessions(&mut self, now: Now) {
        let over = self.revoked_sessions.iter();
        let over = over.filter(|(_, until)| until.is_over(now));
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
mod tests;
