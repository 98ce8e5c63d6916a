//! The session that `tars login` keeps: one a mesh, each in a private file.

pub(crate) mod store;

use super::{
    CommandError,
    mesh::{Known, NoSession, roots_at},
};
use crate::rest::{Rest, RestError};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{fmt, path::PathBuf};
use tars_runtime::clock::Clock;

/// Refreshed when less than this is left.
const MARGIN_S: u64 = 60;
/// Whose mesh answers is asked again after this long: not for each call of a script.
const CONFIRM_EVERY_S: u64 = 60;

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
    confirmed_s: u64,
    #[serde(skip)]
    path: PathBuf,
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
            confirmed_s: 0,
            path: PathBuf::new(),
        }
    }

    pub(crate) async fn login(
        mesh: Known,
        username: &str,
        password: &str,
    ) -> Result<Self, CommandError> {
        let gateway = mesh.gateway.clone().unwrap_or_default();
        let body = json!({ "username": username, "password": password });
        let answer = Rest::new(&gateway).post("/auth/login", body).await?;
        let mut session = Self {
            path: store::place(&mesh)?,
            gateway,
            username: username.to_owned(),
            roots: mesh.roots,
            data_dir: mesh.data_dir,
            access_token: String::new(),
            refresh_token: String::new(),
            expires_s: 0,
            confirmed_s: now_s(),
        };
        session.take(&answer)?;
        store::save(&session.path, &session)?;
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

    /// The mesh answers there now.
    pub(super) fn move_to(&mut self, gateway: String) {
        if self.gateway != gateway {
            self.gateway = gateway;
            self.confirmed_s = 0;
        }
    }

    pub(super) fn of_another_mesh(&self) -> NoSession {
        NoSession::OtherMesh {
            username: self.username.clone(),
            gateway: self.gateway.clone(),
        }
    }

    pub(super) fn is_confirmed(&self) -> bool {
        self.confirmed_s + CONFIRM_EVERY_S > now_s()
    }

    /// Makes sure that the same mesh still answers, and that the access token lasts for a call.
    pub(super) async fn freshen(&mut self) -> Result<(), CommandError> {
        let confirm = !self.is_confirmed();
        let refresh = self.expires_s <= now_s() + MARGIN_S;
        if confirm {
            self.confirm().await?;
        }
        if refresh {
            self.refresh().await?;
        }
        if confirm || refresh {
            store::save(&self.path, self)?;
        }
        Ok(())
    }

    async fn confirm(&mut self) -> Result<(), CommandError> {
        let roots = roots_at(&self.gateway).await?;
        let nobodys = roots.is_empty() && self.roots.is_empty();
        let same = nobodys || roots.iter().any(|r| self.roots.contains(r));
        if !same {
            return Err(CommandError::Failed(self.of_another_mesh().to_string()));
        }
        // Roots rotate: a session that is used goes along.
        self.roots = roots;
        self.confirmed_s = now_s();
        Ok(())
    }

    async fn refresh(&mut self) -> Result<(), CommandError> {
        let body = json!({ "refresh_token": self.refresh_token });
        match Rest::new(&self.gateway).post("/auth/refresh", body).await {
            Ok(answer) => self.take(&answer),
            Err(RestError::Refused { status, .. }) if status.as_u16() == 401 => {
                Err(CommandError::Failed(format!(
                    "the session at {self} has ended; run `tars login` again"
                )))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Ends the session, with all that was refreshed from it, and forgets it.
    pub(crate) async fn end(self) -> Result<(), CommandError> {
        let ended = self.rest().post("/auth/logout", json!({})).await;
        store::remove(&self.path)?;
        match ended {
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
        Rest::new(&self.gateway).with_token(&self.access_token)
    }

    pub(crate) fn token(&self) -> &str {
        &self.access_token
    }
}
