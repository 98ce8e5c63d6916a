//! A small REST client of the gateway, for the commands and the tests of this project.
//!
//! One connection a call: commands make few calls, and a connection that is opened anew needs no pool.

mod error;

pub use error::RestError;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::time::Duration;
use tars_proto::reason;
use tokio::net::TcpStream;

/// A client of one gateway, with the credential of one caller. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rest {
    base: String,
    token: Option<String>,
    key: Option<String>,
    traceparent: Option<String>,
    /// Called before each wait for a busy mesh; without it there is no second try.
    patience: Option<fn(Duration)>,
}

/// How often a patient client makes a call that the mesh has no room for.
const TRIES: u32 = 3;
/// A gateway that is silent for longer does not answer any more: no call of these commands takes as long.
const SILENT_AFTER: Duration = Duration::from_secs(60);
/// A mesh that asks for a longer pause is not waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How soon a call that was not carried out may be made again; `None` for any other answer, and for a
/// pause that is too long to wait for.
fn retry_after<B>(response: &http::Response<B>) -> Option<Duration> {
    let after = response.headers().get(header::RETRY_AFTER)?;
    let wait = Duration::from_secs(after.to_str().ok()?.parse().ok()?);
    let busy = response.status() == StatusCode::TOO_MANY_REQUESTS;
    (busy && wait <= LONGEST_WAIT).then_some(wait)
}

/// Whether a call was refused for which there may be room later. A refusal without a time, such as one of a
/// share that the caller has used up, lasts until the caller does something about it.
fn is_busy<B>(response: &http::Response<B>) -> bool {
    response.status() == StatusCode::TOO_MANY_REQUESTS
        && response.headers().contains_key(header::RETRY_AFTER)
}

impl Rest {
    /// A client of the gateway at `base`, as in `http://127.0.0.1:3001`; without a credential.
    pub fn new(base: &str) -> Self {
        Self {
            base: base.trim_end_matches('/').to_owned(),
            token: None,
            key: None,
            traceparent: None,
            patience: None,
        }
    }

    /// Retries a call that the mesh has no room for just now; `before_wait` is called before each pause.
    #[must_use]
    pub fn with_patience(mut self, before_wait: fn(Duration)) -> Self {
        self.patience = Some(before_wait);
        self
    }

    /// Calls by an access token.
    #[must_use]
    pub fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Calls by an API key.
    #[must_use]
    pub fn with_key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    /// Makes all calls of this client part of the trace that a `traceparent` header names.
    #[must_use]
    pub fn in_trace(mut self, traceparent: &str) -> Self {
        self.traceparent = Some(traceparent.to_owned());
        self
    }

    /// Calls a route without a body.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn get(&self, path: &str) -> Result<Value, RestError> {
        self.call(Method::GET, path, None).await
    }

    /// Posts a body.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn post(&self, path: &str, body: Value) -> Result<Value, RestError> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// Puts a body.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub async fn put(&self, path: &str, body: Value) -> Result<Value, RestError> {
        self.call(Method::PUT, path, Some(body)).await
    }

    /// Reads a page that is not JSON, as `/metrics`, whatever its status.
    ///
    /// # Errors
    ///
    /// When there is no answer.
    pub async fn text(&self, path: &str) -> Result<String, RestError> {
        let response = self.send(&Method::GET, path, None).await?;
        let bytes = self.whole(response.into_body()).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Logs in; returns a client that calls by the access token.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call); wrong passwords and locked accounts are [`RestError::Refused`].
    pub async fn login(&self, username: &str, password: &str) -> Result<Self, RestError> {
        let answer = self
            .post(
                "/auth/login",
                json!({ "username": username, "password": password }),
            )
            .await?;
        let token = answer["access_token"].as_str().ok_or(RestError::NotJson {
            path: "/auth/login".to_owned(),
        })?;
        Ok(self.clone().with_token(token))
    }

    /// Makes a call and reads its answer.
    ///
    /// # Errors
    ///
    /// [`RestError::Refused`] for every status but 2xx, and [`RestError::Busy`] for a 429 that a patient
    /// client got to the end; the other kinds where there is no answer of a gateway.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, RestError> {
        let response = self.send(&method, path, body).await?;
        let (status, is_busy) = (response.status(), is_busy(&response));
        let bytes = self.whole(response.into_body()).await?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| RestError::NotJson {
            path: path.to_owned(),
        })?;
        if status.is_success() {
            return Ok(value);
        }
        Err(self.refused(method, path, (status, is_busy), value))
    }

    /// Waits for something that the gateway does, but not forever.
    async fn answered<T>(&self, answer: impl Future<Output = T>) -> Result<T, RestError> {
        let answered = tokio::time::timeout(SILENT_AFTER, answer).await;
        answered.map_err(|_| RestError::Silent {
            base: self.base.clone(),
            after: SILENT_AFTER,
        })
    }

    async fn whole(&self, body: Incoming) -> Result<Bytes, RestError> {
        let body = self.answered(body.collect()).await?;
        let body = body.map_err(|e| RestError::Http(e.to_string()))?;
        Ok(body.to_bytes())
    }

    fn refused(
        &self,
        method: Method,
        path: &str,
        (status, is_busy): (StatusCode, bool),
        body: Value,
    ) -> RestError {
        let message = body["message"].as_str().unwrap_or_default().to_owned();
        // Nothing is gained by waiting for a quota, which a month ends.
        let is_quota = error::reason_in(&body) == Some(reason::QUOTA_EXCEEDED);
        match self.patience.is_some() && is_busy && !is_quota {
            true => RestError::Busy { message, body },
            false => RestError::Refused {
                method,
                path: path.to_owned(),
                status,
                message,
                body,
            },
        }
    }

    /// Follows a stream; `each` gets every item and returns whether it wants the next one.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call), and [`RestError::Stream`] when the stream ends with an error.
    pub async fn follow(
        &self,
        path: &str,
        each: impl FnMut(&Value) -> bool,
    ) -> Result<(), RestError> {
        self.stream(Method::GET, path, None, each).await
    }

    /// The same as [`follow`](Self::follow) for a stream that takes a body.
    ///
    /// # Errors
    ///
    /// As [`follow`](Self::follow).
    pub async fn stream(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        mut each: impl FnMut(&Value) -> bool,
    ) -> Result<(), RestError> {
        let response = self.send(&method, path, body).await?;
        let (status, is_busy) = (response.status(), is_busy(&response));
        let mut body = response.into_body();
        let mut pending = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| RestError::Http(e.to_string()))?;
            pending.extend_from_slice(frame.data_ref().map_or(&[][..], |d| d));
            if !status.is_success() {
                continue;
            }
            while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                if line.len() > 1 && !take(path, &line, &mut each)? {
                    return Ok(());
                }
            }
        }
        if status.is_success() {
            return Ok(());
        }
        let body: Value = serde_json::from_slice(&pending).unwrap_or_default();
        Err(self.refused(method, path, (status, is_busy), body))
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<http::Response<Incoming>, RestError> {
        for _ in 1..TRIES {
            let once = self.send_once(method, path, body.clone());
            let response = self.answered(once).await??;
            let (Some(before_wait), Some(wait)) = (self.patience, retry_after(&response)) else {
                return Ok(response);
            };
            before_wait(wait);
            tokio::time::sleep(wait).await;
        }
        self.answered(self.send_once(method, path, body)).await?
    }

    async fn send_once(
        &self,
        method: &Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<http::Response<Incoming>, RestError> {
        let host = self.host()?;
        let tcp = self.connect(host).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp))
            .await
            .map_err(|e| self.failed(e))?;
        tokio::spawn(connection);
        let request = self.request(method, path, host, body)?;
        sender
            .send_request(request)
            .await
            .map_err(|e| self.failed(e))
    }

    /// `host:port` of the gateway.
    fn host(&self) -> Result<&str, RestError> {
        let host = self.base.trim_start_matches("http://");
        if host.contains("://") {
            let base = self.base.clone();
            return Err(RestError::Scheme { base });
        }
        Ok(host)
    }

    async fn connect(&self, host: &str) -> Result<TcpStream, RestError> {
        let connected = TcpStream::connect(host).await;
        connected
            .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
            .map_err(|source| RestError::Unreachable {
                base: self.base.clone(),
                source,
            })
    }

    fn failed(&self, error: hyper::Error) -> RestError {
        if !error.is_parse() {
            return RestError::Http(error.to_string());
        }
        RestError::NotGateway {
            base: self.base.clone(),
            source: error,
        }
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        host: &str,
        body: Option<Value>,
    ) -> Result<Request<Full<Bytes>>, RestError> {
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let json = body.as_ref().map(|_| "application/json".to_owned());
        let headers = [
            ("authorization", bearer),
            ("x-api-key", self.key.clone()),
            ("traceparent", self.traceparent.clone()),
            ("content-type", json),
        ];
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header(header::HOST, host);
        for (name, value) in headers {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        request
            .body(Full::new(bytes))
            .map_err(|e| RestError::Http(e.to_string()))
    }
}

/// Percent-encodes a text, so that it stays one segment of a path or one value of a query.
pub(crate) fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    text.bytes()
        .map(|b| {
            if plain(b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

fn take(path: &str, line: &[u8], each: &mut impl FnMut(&Value) -> bool) -> Result<bool, RestError> {
    let item: Value = serde_json::from_slice(line).map_err(|_| RestError::NotJson {
        path: path.to_owned(),
    })?;
    if let Some(error) = item.get("error") {
        let message = error["message"].as_str().unwrap_or_default().to_owned();
        return Err(RestError::Stream {
            path: path.to_owned(),
            message,
            code: error["code"].as_i64().unwrap_or_default(),
        });
    }
    Ok(each(&item["result"]))
}

#[cfg(test)]
mod tests;
