//! A mesh that is not ready: what a call that fails there means, and what the mesh waits for.

use super::CommandError;
use crate::rest::{Rest, RestError};
use http::StatusCode;
use serde_json::Value;
use std::time::Duration;
use tars_proto::reason;

/// How long it is waited for what the gateway says of itself.
const SAYS_WITHIN: Duration = Duration::from_secs(2);

const AGAIN: &str = "it may be starting or stopping: try again in a moment";

/// Adds to an error of a call what it means where the mesh is not ready.
pub(super) async fn explained(error: CommandError, gateway: Option<&str>) -> CommandError {
    let CommandError::Rest(error) = error else {
        return error;
    };
    let cut = match &error {
        RestError::Refused { status, .. } if *status == StatusCode::SERVICE_UNAVAILABLE => false,
        RestError::Http(_) => true,
        _ => return CommandError::Rest(error),
    };
    let waits_for = match gateway {
        Some(gateway) => unready(gateway).await,
        None => None,
    };
    let advice = match waits_for {
        Some(checks) => format!("the mesh is not ready ({checks}); {AGAIN}"),
        None if cut => format!("the connection to the mesh was lost; {AGAIN}"),
        None if error.reason() == Some(reason::UNREACHABLE) => {
            "that service is away, or still starting: try again in a moment".to_owned()
        }
        None => return CommandError::Rest(error),
    };
    CommandError::Advised {
        error: Box::new(error),
        advice,
    }
}

/// The checks that fail, if the gateway says that it is not ready.
async fn unready(gateway: &str) -> Option<String> {
    let rest = Rest::new(gateway);
    let page = tokio::time::timeout(SAYS_WITHIN, rest.text("/ready")).await;
    let page: Value = serde_json::from_str(&page.ok()?.ok()?).ok()?;
    (page["ready"] == false).then(|| failed(&page))
}

/// `auth.store: is locked, hypersync.leases: none`; which checks failed, in a report.
fn failed(report: &Value) -> String {
    let checks = report["checks"].as_object().into_iter().flatten();
    let failed = checks.filter(|(_, check)| check["state"] == "failed");
    let named = failed.map(|(name, check)| match check["detail"].as_str() {
        None | Some("") => name.clone(),
        Some(detail) => format!("{name}: {detail}"),
    });
    named.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    /// A gateway that answers once, with this of itself.
    async fn gateway(report: Value) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let read = peer.read(&mut head).await.unwrap();
            assert!(head[..read].starts_with(b"GET /ready "));
            let body = report.to_string();
            let answer = format!(
                "HTTP/1.1 503 Unready\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            peer.write_all(answer.as_bytes()).await.unwrap();
        });
        base
    }

    fn refused(status: StatusCode, reason: &str) -> CommandError {
        CommandError::Rest(RestError::Refused {
            method: http::Method::GET,
            path: "/x".to_owned(),
            status,
            message: "auth cannot be reached".to_owned(),
            body: json!({ "details": [{ "domain": "tars", "reason": reason }] }),
        })
    }

    #[tokio::test]
    async fn a_call_to_a_mesh_that_is_not_ready_says_what_it_waits_for() {
        let report = json!({ "ready": false, "checks": {
            "auth.store": { "state": "failed", "detail": "it is locked" },
            "auth.leases": { "state": "ok" }, "stop": { "state": "failed" },
        } });
        let unavailable = || refused(StatusCode::SERVICE_UNAVAILABLE, "UNREACHABLE");
        let at = gateway(report.clone()).await;
        let told = explained(unavailable(), Some(&at)).await.to_string();
        for part in [
            "auth cannot be reached",
            "(auth.store: it is locked, stop)",
            "starting",
        ] {
            assert!(told.contains(part), "{told}");
        }
        let cut = CommandError::Rest(RestError::Http("cut".to_owned()));
        let at = gateway(report).await;
        let told = explained(cut, Some(&at)).await.to_string();
        assert!(told.contains("not ready (auth.store"), "{told}");
    }

    #[tokio::test]
    async fn what_has_another_cause_is_left_as_it_is() {
        let nobody = Some("http://127.0.0.1:1");
        for (error, added) in [
            (
                refused(StatusCode::SERVICE_UNAVAILABLE, "UNREACHABLE"),
                true,
            ),
            (
                refused(StatusCode::SERVICE_UNAVAILABLE, "OVERLOADED"),
                false,
            ),
            (refused(StatusCode::NOT_FOUND, "UNREACHABLE"), false),
            (CommandError::Failed("starting".to_owned()), false),
            (CommandError::Rest(RestError::Http("cut".to_owned())), true),
        ] {
            let before = error.to_string();
            let after = explained(error, nobody).await.to_string();
            assert_eq!(after != before, added, "{after}");
            assert!(!added || after.contains("try again in a moment"), "{after}");
        }
    }
}
