//! The session that `tars login` keeps: one a mesh, each in a private file.

mod missing;
pub(crate) mod store;

pub(crate) use missing::NoSession;

use super::{
    CommandError,
    known::{Known, plain_url, rest_at, roots_at},
};
use crate::{
    app::Ready,
    rest::{Rest, RestError},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    fmt,
    path::{Path, PathBuf},
};
use tars_runtime::clock::Clock;

/// Refreshed when less than this is left.
const MARGIN_S: u64 = 60;

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) gateway: String,
    pub(crate) username: String,
    /// Which mesh: the key ids of its roots when it last answered.
    pub(crate) roots: Vec<String>,
    /// Where it ran when it was logged in to by that.
    data_dir: Option<PathBuf>,
    access_token: String,
    refresh_token: String,
    expires_s: u64,
    #[serde(skip)]
    path: PathBuf,
    /// Where the mesh answers now, when that is elsewhere.
    #[serde(skip)]
    at: Option<String>,
}

fn now_s() -> u64 {
    Clock::system().now_s()
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {}", self.gateway, self.username)?;
        match &self.data_dir {
            Some(dir) => write!(f, " (data directory {})", dir.display()),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({self})")
    }
}

impl Session {
    #[cfg(test)]
    pub(crate) fn of(gateway: &str, username: &str, roots: &[&str]) -> Self {
        Self {
            gateway: gateway.to_owned(),
            username: username.to_owned(),
            roots: roots.iter().map(|r| (*r).to_owned()).collect(),
            data_dir: None,
            access_token: String::new(),
            refresh_token: String::new(),
            expires_s: 0,
            path: PathBuf::new(),
            at: None,
        }
    }

    pub(crate) async fn login(
        mesh: Known,
        username: &str,
        password: &str,
    ) -> Result<Self, CommandError> {
        let gateway = mesh.gateway.clone().unwrap_or_default();
        let body = json!({ "username": username, "password": password });
        let answer = rest_at(&gateway).post("/auth/login", body).await?;
        let mut session = Self {
            path: store::place(&mesh),
            gateway,
            username: username.to_owned(),
            roots: mesh.roots,
            data_dir: mesh.data_dir,
            access_token: String::new(),
            refresh_token: String::new(),
            expires_s: 0,
            at: None,
        };
        session.take(&answer)?;
        store::replace(&session)?;
        store::forget_old()?;
        Ok(session)
    }

    fn take(&mut self, answer: &serde_json::Value) -> Result<(), CommandError> {
        let text = |name: &str| {
            let value = answer[name].as_str().map(str::to_owned);
            value.ok_or_else(|| CommandError::Failed(format!("the answer has no {name}")))
        };
        self.access_token = text("access_token")?;
        self.refresh_token = text("refresh_token")?;
        self.expires_s = now_s() + answer["expires_in"].as_u64().unwrap_or_default();
        Ok(())
    }

    /// The mesh answers there now. What the session is called stays as it was.
    pub(super) fn move_to(&mut self, gateway: String) {
        self.at = Some(gateway);
    }

    pub(super) fn url(&self) -> &str {
        self.at.as_deref().unwrap_or(&self.gateway)
    }

    /// The gateway's current URL, from the ready file of the session's data directory.
    pub(super) fn running_at(&self) -> Option<String> {
        let ready = Ready::load(&Ready::default_path(self.data_dir.as_ref()?));
        Some(ready.ok()?.gateway)
    }

    /// Moves to the gateway's current URL where the session's data directory names one: a restarted mesh
    /// may listen elsewhere.
    pub(super) fn find_again(&mut self) {
        if let Some(url) = self.running_at() {
            self.move_to(url);
        }
    }

    pub(super) fn is_at(&self, gateway: &str) -> bool {
        plain_url(&self.gateway) == plain_url(gateway)
    }

    pub(super) fn is_in(&self, dir: &Path) -> bool {
        self.data_dir
            .as_deref()
            .is_some_and(|own| own == dir || dir.canonicalize().is_ok_and(|dir| own == dir))
    }

    /// Whether a login to one takes the place of the other.
    fn replaces(&self, other: &Self) -> bool {
        self.roots.iter().any(|r| other.roots.contains(r))
            || self.is_at(&other.gateway)
            || self.data_dir.as_deref().is_some_and(|d| other.is_in(d))
    }

    pub(super) fn of_another_mesh(&self) -> NoSession {
        NoSession::OtherMesh {
            username: self.username.clone(),
            gateway: self.gateway.clone(),
        }
    }

    /// Makes sure that the same mesh still answers, and that the access token lasts for a call.
    /// Before each command, and before anything secret goes out; `there` are the roots of whatever
    /// answers, when they are known already.
    pub(super) async fn freshen(&mut self, there: Option<Vec<String>>) -> Result<(), CommandError> {
        let there = match there {
            Some(roots) => roots,
            None => roots_at(self.url()).await?,
        };
        let followed = self.follow(there)?;
        let refresh = self.expires_s <= now_s() + MARGIN_S;
        if refresh {
            self.refresh().await?;
        }
        if followed || refresh {
            store::save(&self.path, self)?;
        }
        Ok(())
    }

    /// After a change of the roots.
    pub(crate) async fn follow_roots(&mut self) -> Result<(), CommandError> {
        self.freshen(None).await
    }

    /// Roots rotate: a mesh that still has one that is known is the same, with all that it has now.
    fn follow(&mut self, there: Vec<String>) -> Result<bool, CommandError> {
        let outside_authority = there.is_empty() && self.roots.is_empty();
        if !outside_authority && !there.iter().any(|r| self.roots.contains(r)) {
            return Err(self.of_another_mesh().into());
        }
        let changed = self.roots != there;
        self.roots = there;
        Ok(changed)
    }

    async fn refresh(&mut self) -> Result<(), CommandError> {
        let body = json!({ "refresh_token": self.refresh_token });
        match rest_at(self.url()).post("/auth/refresh", body).await {
            Ok(answer) => self.take(&answer),
            Err(RestError::Refused { status, .. }) if status.as_u16() == 401 => {
                Err(CommandError::NotLoggedIn(format!(
                    "the session at {self} has ended; run `tars login` again"
                )))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Removes the session's file and ends the session with every token that was refreshed from it; the
    /// inner error is why the mesh did not end it.
    pub(crate) async fn end(mut self) -> Result<Result<(), CommandError>, CommandError> {
        let ended = self.log_out().await;
        store::remove(&self.path)?;
        Ok(ended)
    }

    async fn log_out(&mut self) -> Result<(), CommandError> {
        self.freshen(None).await?;
        match self.rest().post("/auth/logout", json!({})).await {
            // It was over already.
            Err(RestError::Refused { status, .. }) if status.as_u16() == 401 => Ok(()),
            other => other.map(drop).map_err(CommandError::from),
        }
    }

    pub(super) fn at(mut self, path: PathBuf) -> Self {
        self.path = path;
        self
    }

    pub(crate) fn rest(&self) -> Rest {
        rest_at(self.url()).with_token(&self.access_token)
    }

    pub(crate) fn token(&self) -> &str {
        &self.access_token
    }
}
