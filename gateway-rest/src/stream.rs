//! Server streams over HTTP: Server-Sent Events on request, newline-delimited JSON otherwise. An error after
//! the first byte can no longer change the status, so it is the last item.

use crate::{error, transcode};
use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderValue, header};
use serde_json::json;
use std::{convert::Infallible, time::Duration};
use tars_proto::table::Method;
use tars_runtime::{listen::HoldingBody, trace::Span};
use tonic::{Status, Streaming};

/// The interval of heartbeats, which keep proxies from closing a quiet stream.
const HEARTBEAT: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Events,
    Lines,
}

impl Format {
    pub(crate) fn asked_by(headers: &HeaderMap) -> Self {
        let accept = headers
            .get(header::ACCEPT)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        if accept.contains("text/event-stream") {
            Self::Events
        } else {
            Self::Lines
        }
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Events => "text/event-stream",
            Self::Lines => "application/x-ndjson",
        })
    }

    fn item(self, json: &str, id: Option<u64>) -> String {
        match (self, id) {
            (Self::Events, Some(id)) => format!("id: {id}\ndata: {json}\n\n"),
            (Self::Events, None) => format!("data: {json}\n\n"),
            (Self::Lines, _) => format!("{{\"result\":{json}}}\n"),
        }
    }

    fn error(self, status: &Status) -> String {
        let value = error::to_json(status);
        match self {
            Self::Events => format!("event: error\ndata: {value}\n\n"),
            Self::Lines => format!("{}\n", json!({ "error": value })),
        }
    }

    fn heartbeat(self) -> &'static str {
        match self {
            Self::Events => ": keep-alive\n\n",
            Self::Lines => "\n",
        }
    }
}

/// Keeps a span open until the body is dropped: a streamed response is not over with its headers.
pub(crate) fn spanned(body: Body, span: Span) -> Body {
    if span.is_recording() {
        Body::new(HoldingBody::new(body, span))
    } else {
        body
    }
}

pub(crate) fn respond(
    method: &'static Method,
    items: Streaming<Bytes>,
    format: Format,
) -> Response {
    let mut response = Body::from_stream(chunks(method, items, format)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, format.content_type());
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn chunks(
    method: &'static Method,
    items: Streaming<Bytes>,
    format: Format,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(Some(items), move |items| async move {
        let mut items = items?;
        let (text, more) = match tokio::time::timeout(HEARTBEAT, items.next()).await {
            Err(_) => (format.heartbeat().to_owned(), true),
            Ok(None) => return None,
            Ok(Some(item)) => match item.and_then(|bytes| one(method, &bytes, format)) {
                Ok(text) => (text, true),
                Err(status) => (format.error(&status), false),
            },
        };
        Some((Ok(Bytes::from(text)), more.then_some(items)))
    })
}

fn one(method: &Method, bytes: &[u8], format: Format) -> Result<String, Status> {
    let message = transcode::response(method, bytes)?;
    let id = message
        .get_field_by_name("sequence")
        .and_then(|v| v.as_u64());
    let json = transcode::to_json(&message)?;
    Ok(format.item(&String::from_utf8_lossy(&json), id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_carry_their_number() {
        let json = "{\"sequence\":\"7\",\"x\":\"a\\nb\"}";
        assert_eq!(
            Format::Events.item(json, Some(7)),
            "id: 7\ndata: {\"sequence\":\"7\",\"x\":\"a\\nb\"}\n\n"
        );
        assert_eq!(Format::Lines.item("{}", None), "{\"result\":{}}\n");
    }
}
