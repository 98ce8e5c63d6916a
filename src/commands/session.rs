//! The session that `tars login` keeps, in a private file.

use super::CommandError;
use crate::rest::{Rest, RestError};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::PathBuf;
use tars_certs::secret;
use tars_runtime::clock::Clock;

/// Refreshed when less than this is left.
const MARGIN_S: u64 = 60;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) gateway: String,
    pub(crate) username: String,
    access_token: String,
    refresh_token: String,
    expires_s: u64,
}

fn path() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let base =
        std::env::var_os("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from);
    base.join("tars").join("session.json")
}

fn now_s() -> u64 {
    Clock::system().now_s()
}

impl Session {
    pub(crate) async fn login(
        gateway: &str,
        username: &str,
        password: &str,
    ) -> Result<Self, CommandError> {
        let body = json!({ "username": username, "password": password });
        let answer = Rest::new(gateway).post("/auth/login", body).await?;
        let mut session = Self {
            gateway: gateway.to_owned(),
            username: username.to_owned(),
            access_token: String::new(),
            refresh_token: String::new(),
            expires_s: 0,
        };
        session.take(&answer)?;
        session.save()?;
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

    fn save(&self) -> Result<(), CommandError> {
        let path = path();
        let text = serde_json::to_string(self).map_err(|e| CommandError::Failed(e.to_string()))?;
        let dir = path
            .parent()
            .map_or_else(|| PathBuf::from("."), PathBuf::from);
        secret::create_dir(&dir).map_err(|e| CommandError::file(&dir, e))?;
        secret::write(&path, text.as_bytes()).map_err(|e| CommandError::file(&path, e))
    }

    /// The kept session, refreshed when its access token is about to expire.
    pub(crate) async fn open() -> Result<Self, CommandError> {
        let missing = |e: &dyn std::fmt::Display| {
            CommandError::Failed(format!("no session ({e}); run `tars login` first"))
        };
        let text = secret::read(&path()).map_err(|e| missing(&e))?;
        let mut session: Self = serde_json::from_str(&text).map_err(|e| missing(&e))?;
        if session.expires_s > now_s() + MARGIN_S {
            return Ok(session);
        }
        let body = json!({ "refresh_token": session.refresh_token });
        match Rest::new(&session.gateway)
            .post("/auth/refresh", body)
            .await
        {
            Ok(answer) => session.take(&answer)?,
            Err(RestError::Refused { status, .. }) if status.as_u16() == 401 => {
                return Err(CommandError::Failed(
                    "the session has ended; run `tars login` again".to_owned(),
                ));
            }
            Err(e) => return Err(e.into()),
        }
        session.save()?;
        Ok(session)
    }

    pub(crate) fn rest(&self) -> Rest {
        Rest::new(&self.gateway).with_token(&self.access_token)
    }

    pub(crate) fn token(&self) -> &str {
        &self.access_token
    }
}
