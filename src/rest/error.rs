//! Why a call of the gateway failed.

use http::{Method, StatusCode};
use serde_json::Value;
use tars_proto::{fault, reason};

/// Why a call of the gateway failed, in words for whoever runs a command.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// No connection could be made.
    #[error(
        "cannot reach the gateway at {base}: {source}; is `tars up` running, and has it said that it is ready?"
    )]
    Unreachable {
        /// The URL that was tried.
        base: String,
        /// What the system reports.
        source: std::io::Error,
    },
    /// The URL has a scheme other than `http`.
    #[error(
        "{base} is not a gateway URL: the gateway speaks plain HTTP, on http://HOST:PORT; where a proxy adds TLS, name the address behind it"
    )]
    Scheme {
        /// The URL as it was given.
        base: String,
    },
    /// Something answers, but not in HTTP.
    #[error(
        "what answers at {base} does not speak HTTP as the gateway does: is it another port of the mesh, for gRPC over TLS? (cause: {source})"
    )]
    NotGateway {
        /// The URL that was tried.
        base: String,
        /// Where parsing failed.
        source: hyper::Error,
    },
    /// A connection was made, and nothing came back.
    #[error(
        "the gateway at {base} has not answered for {} s: its process may be suspended or overloaded; whether the call was carried out is not known", after.as_secs()
    )]
    Silent {
        /// The URL that was tried.
        base: String,
        /// How long it was waited for.
        after: std::time::Duration,
    },
    /// The gateway, or a service behind it, refused the call.
    #[error("{method} {}: {message} ({status})", without_query(path))]
    Refused {
        /// The method of the call.
        method: Method,
        /// The path of the call, with its query.
        path: String,
        /// The HTTP status of the answer.
        status: StatusCode,
        /// The message of the `google.rpc.Status` in the answer.
        message: String,
        /// The whole answer, with its details.
        body: Value,
    },
    /// A rate limit is spent, or the mesh is full, and a patient client has stopped trying.
    #[error("{}, and the command was not carried out: {message}", why_busy(body))]
    Busy {
        /// The message of the last refusal.
        message: String,
        /// The last refusal, with its details.
        body: Value,
    },
    /// The exchange failed after a connection was made.
    #[error("{0}")]
    Http(String),
    /// The answer is not what the gateway sends.
    #[error("{path}: the answer is not JSON")]
    NotJson {
        /// The path of the call, with its query.
        path: String,
    },
    /// A stream ended with an error; its items up to there were delivered.
    #[error("{path}: the stream ended with {message}")]
    Stream {
        /// The path of the call, with its query.
        path: String,
        /// The message of the error.
        message: String,
        /// The gRPC code of the error; 0 when the gateway names none.
        code: i64,
    },
}

impl RestError {
    /// The reason of a refusal, as in the `ErrorInfo` of its details; a program can branch on it.
    pub fn reason(&self) -> Option<&str> {
        reason_in(self.body()?)
    }

    /// The `google.rpc.Status` of a refusal.
    pub(crate) fn body(&self) -> Option<&Value> {
        match self {
            Self::Refused { body, .. } | Self::Busy { body, .. } => Some(body),
            _ => None,
        }
    }

    /// The name of another resource that a refusal is about, as in the `ResourceInfo` of its details.
    pub(crate) fn resource(&self) -> Option<&str> {
        self.detail("resource_name")
    }

    /// The kind of that resource, such as `agent`.
    pub(crate) fn resource_kind(&self) -> Option<&str> {
        self.detail("resource_type")
    }

    /// The first text of this name in the details of a refusal.
    fn detail(&self, name: &str) -> Option<&str> {
        let mut details = self.body()?["details"].as_array()?.iter();
        details.find_map(|d| d[name].as_str())
    }

    /// The HTTP status of a refusal.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the caller is not who may make the call: 401 or 403.
    pub(crate) fn is_denied(&self) -> bool {
        let denied = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];
        self.status().is_some_and(|status| denied.contains(&status))
    }
}

/// The reason in a refusal.
pub(super) fn reason_in(body: &Value) -> Option<&str> {
    let mut details = body["details"].as_array()?.iter();
    let info = details.find(|d| d["domain"] == fault::DOMAIN)?;
    info["reason"].as_str()
}

/// What there is too much of: the caller's calls, or everybody's.
fn why_busy(body: &Value) -> &'static str {
    match reason_in(body) {
        Some(reason::RATE_LIMITED) => "your rate limit is spent",
        _ => "the mesh has no room for this command now",
    }
}

/// A path without what it asks for, which a command made up and nobody typed.
fn without_query(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}
