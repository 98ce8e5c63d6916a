//! A small REST client of the gateway, for our own commands.

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpStream;

#[derive(Debug, thiserror::Error)]
pub enum RestError {
    #[error("cannot reach the gateway at {base}: {source}; is `tars up` running?")]
    Unreachable {
        base: String,
        source: std::io::Error,
    },
    #[error(
        "{base} is no gateway's URL: the gateway speaks plain HTTP, on http://HOST:PORT; where a proxy adds TLS, name what stands behind it"
    )]
    Scheme { base: String },
    #[error(
        "what answers at {base} does not speak HTTP as the gateway does: is it another port of the mesh, for gRPC over TLS? (cause: {source})"
    )]
    NotGateway { base: String, source: hyper::Error },
    #[error("{method} {path}: {message} ({status})")]
    Refused {
        method: Method,
        path: String,
        status: StatusCode,
        message: String,
        body: Value,
    },
    #[error("the mesh has no room for this command now, and did not carry it out: {message}")]
    Busy { message: String },
    #[error("{0}")]
    Http(String),
    #[error("{path}: the answer is not JSON")]
    NotJson { path: String },
    #[error("{path}: the stream ended with {message}")]
    Stream { path: String, message: String },
}

#[derive(Debug, Clone)]
pub struct Rest {
    base: String,
    token: Option<String>,
    key: Option<String>,
    traceparent: Option<String>,
    /// Told of each wait; nobody waits for a busy mesh without it.
    patience: Option<fn(Duration)>,
}

/// How often a call is made that the mesh has no room for, and how long it may ask to wait between.
const TRIES: u32 = 3;
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How soon a call that was not carried out may be made again; none when it is no such answer, or that is
/// too far away to wait for.
fn wait_asked<B>(response: &http::Response<B>) -> Option<Duration> {
    let after = response.headers().get(header::RETRY_AFTER)?;
    let wait = Duration::from_secs(after.to_str().ok()?.parse().ok()?);
    let busy = response.status() == StatusCode::TOO_MANY_REQUESTS;
    (busy && wait <= LONGEST_WAIT).then_some(wait)
}

impl Rest {
    pub fn new(base: &str) -> Self {
        Self {
            base: base.trim_end_matches('/').to_owned(),
            token: None,
            key: None,
            traceparent: None,
            patience: None,
        }
    }

    /// Makes a call anew that the mesh has no room for just now; `told` hears of each wait.
    #[must_use]
    pub fn with_patience(mut self, told: fn(Duration)) -> Self {
        self.patience = Some(told);
        self
    }

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

    /// All calls of this client belong to one trace.
    #[must_use]
    pub fn in_trace(mut self, traceparent: &str) -> Self {
        self.traceparent = Some(traceparent.to_owned());
        self
    }

    pub async fn get(&self, path: &str) -> Result<Value, RestError> {
        self.call(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Result<Value, RestError> {
        self.call(Method::POST, path, Some(body)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Result<Value, RestError> {
        self.call(Method::PUT, path, Some(body)).await
    }

    /// What is no JSON, as metrics.
    pub async fn text(&self, path: &str) -> Result<String, RestError> {
        let response = self.send(&Method::GET, path, None).await?;
        let body = response.into_body().collect().await;
        let bytes = body.map_err(|e| RestError::Http(e.to_string()))?.to_bytes();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

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

    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, RestError> {
        let response = self.send(&method, path, body).await?;
        let status = response.status();
        let bytes = response
            .into_body()
            .collect()
            .await
            .map_err(|e| RestError::Http(e.to_string()))?
            .to_bytes();
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| RestError::NotJson {
            path: path.to_owned(),
        })?;
        if status.is_success() {
            return Ok(value);
        }
        Err(self.refused(method, path, status, value))
    }

    fn refused(&self, method: Method, path: &str, status: StatusCode, body: Value) -> RestError {
        let message = body["message"].as_str().unwrap_or_default().to_owned();
        let path = path.to_owned();
        if self.patience.is_some() && status == StatusCode::TOO_MANY_REQUESTS {
            return RestError::Busy { message };
        }
        RestError::Refused {
            method,
            path,
            status,
            message,
            body,
        }
    }

    /// Follows a stream; `each` gets every item until it says that it has seen enough.
    pub async fn follow(
        &self,
        path: &str,
        each: impl FnMut(&Value) -> bool,
    ) -> Result<(), RestError> {
        self.stream(Method::GET, path, None, each).await
    }

    /// The same for a stream that takes a body.
    pub async fn stream(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        mut each: impl FnMut(&Value) -> bool,
    ) -> Result<(), RestError> {
        let response = self.send(&method, path, body).await?;
        let status = response.status();
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
        Err(self.refused(method, path, status, body))
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<http::Response<hyper::body::Incoming>, RestError> {
        for _ in 1..TRIES {
            let response = self.send_once(method, path, body.clone()).await?;
            let (Some(told), Some(wait)) = (self.patience, wait_asked(&response)) else {
                return Ok(response);
            };
            told(wait);
            tokio::time::sleep(wait).await;
        }
        self.send_once(method, path, body).await
    }

    async fn send_once(
        &self,
        method: &Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<http::Response<hyper::body::Incoming>, RestError> {
        let host = self.base.trim_start_matches("http://").to_owned();
        let unreachable = |source| RestError::Unreachable {
            base: self.base.clone(),
            source,
        };
        if host.contains("://") {
            return Err(RestError::Scheme {
                base: self.base.clone(),
            });
        }
        let tcp = TcpStream::connect(&host).await.map_err(unreachable)?;
        tcp.set_nodelay(true).map_err(unreachable)?;
        let failed = |e: hyper::Error| match e.is_parse() {
            true => RestError::NotGateway {
                base: self.base.clone(),
                source: e,
            },
            false => RestError::Http(e.to_string()),
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp))
            .await
            .map_err(failed)?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header(header::HOST, host);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(key) = &self.key {
            request = request.header("x-api-key", key);
        }
        if let Some(traceparent) = &self.traceparent {
            request = request.header("traceparent", traceparent);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let request = request
            .body(Full::new(bytes))
            .map_err(|e| RestError::Http(e.to_string()))?;
        sender.send_request(request).await.map_err(failed)
    }
}

/// A text as one segment of a path, or one value of a query, whatever is in it.
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
        });
    }
    Ok(each(&item["result"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    /// Answers so many calls as a busy mesh that asks to come back after so many seconds, and the next
    /// as one that has room; tells how many there were.
    async fn busy(calls: u32, seconds: u32) -> (String, tokio::task::JoinHandle<u32>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let mut seen = 0;
            let idle = Duration::from_millis(500);
            while let Ok(Ok((mut peer, _))) = tokio::time::timeout(idle, listener.accept()).await {
                let mut head = vec![0; 4096];
                let _read = peer.read(&mut head).await.unwrap();
                seen += 1;
                let (status, body) = match seen <= calls {
                    true => ("429 Busy", r#"{"message":"retry after 0 s"}"#),
                    false => ("200 OK", r#"{"done":true}"#),
                };
                let answer = format!(
                    "HTTP/1.1 {status}\r\nretry-after: {seconds}\r\nconnection: close\r\n\
                     content-length: {}\r\n\r\n{body}",
                    body.len()
                );
                peer.write_all(answer.as_bytes()).await.unwrap();
            }
            seen
        });
        (base, served)
    }

    static WAITS: AtomicU32 = AtomicU32::new(0);

    fn told(_: Duration) {
        WAITS.fetch_add(1, Ordering::SeqCst);
    }

    #[tokio::test]
    async fn a_busy_mesh_is_asked_again_twice_and_no_more() {
        for (calls, seconds, patient, asked, well) in [
            (2, 0, true, 3, true),
            (9, 0, true, 3, false),
            (1, 6, true, 1, false),
            (1, 0, false, 1, false),
        ] {
            let (base, served) = busy(calls, seconds).await;
            let rest = Rest::new(&base);
            let rest = match patient {
                true => rest.with_patience(told),
                false => rest,
            };
            let answer = rest.post("/x", json!({})).await;
            assert_eq!(answer.is_ok(), well, "{answer:?}");
            if let Err(e) = answer {
                let busy = matches!(&e, RestError::Busy { message } if message.contains("retry"));
                assert_eq!(busy, patient, "{e}");
                assert_ne!(e.to_string().contains("/x"), patient, "{e}");
            }
            assert_eq!(served.await.unwrap(), asked);
        }
        assert_eq!(WAITS.load(Ordering::SeqCst), 4);
    }

    #[test]
    fn a_name_stays_one_segment_whatever_is_in_it() {
        for (name, segment) in [
            ("ada", "ada"),
            ("a.b-c_d~", "a.b-c_d~"),
            ("ada/enable?x=", "ada%2Fenable%3Fx%3D"),
            ("a&b#c%2F", "a%26b%23c%252F"),
            ("\u{f6} ", "%C3%B6%20"),
        ] {
            assert_eq!(escape(name), segment);
        }
    }
}
