use super::*;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// Answers the first `calls` with 429 and a pause of `seconds`, and the next with 200; returns how
/// many it received.
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

fn count_wait(_: Duration) {
    WAITS.fetch_add(1, Ordering::SeqCst);
}

#[test]
fn a_refusal_without_a_time_is_not_a_busy_mesh() {
    let refused = |status: u16, after: Option<&str>| {
        let mut response = http::Response::builder().status(status);
        if let Some(after) = after {
            response = response.header(header::RETRY_AFTER, after);
        }
        is_busy(&response.body(()).unwrap())
    };
    assert!(refused(429, Some("1")));
    assert!(!refused(429, None));
    assert!(!refused(503, Some("1")));
}

#[test]
fn a_spent_quota_is_not_a_busy_mesh() {
    let info = json!({ "domain": tars_proto::fault::DOMAIN, "reason": reason::QUOTA_EXCEEDED });
    let body = json!({ "message": "3000 of 3000 are left", "details": [info] });
    let rest = Rest::new("http://127.0.0.1:1").with_patience(count_wait);
    let of = |body: Value| {
        let busy = (StatusCode::TOO_MANY_REQUESTS, true);
        rest.refused(Method::POST, "/x?page_size=1&page_token=", busy, body)
    };
    let spent = of(body).to_string();
    assert_eq!(
        spent,
        "POST /x: 3000 of 3000 are left (429 Too Many Requests)"
    );
    let busy = of(json!({ "message": "later" }));
    assert!(matches!(busy, RestError::Busy { .. }));
    assert!(
        busy.to_string().starts_with("the mesh has no room"),
        "{busy}"
    );
}

#[test]
fn a_spent_rate_limit_keeps_its_reason_and_is_not_the_mesh_s() {
    let info = json!({ "domain": tars_proto::fault::DOMAIN, "reason": reason::RATE_LIMITED });
    let body = json!({ "message": "retry after 7 s", "details": [info] });
    let rest = Rest::new("http://127.0.0.1:1").with_patience(count_wait);
    let busy = (StatusCode::TOO_MANY_REQUESTS, true);
    let spent = rest.refused(Method::GET, "/x", busy, body.clone());
    assert!(matches!(spent, RestError::Busy { .. }), "{spent}");
    assert_eq!(spent.reason(), Some(reason::RATE_LIMITED));
    assert_eq!(spent.body(), Some(&body));
    let text = spent.to_string();
    assert!(
        text.starts_with("your rate limit is spent, and the command was not"),
        "{text}"
    );
}

#[tokio::test]
async fn a_busy_mesh_is_called_three_times_at_most() {
    for (calls, seconds, patient, asked, well) in [
        (2, 0, true, 3, true),
        (9, 0, true, 3, false),
        (1, 6, true, 1, false),
        (1, 0, false, 1, false),
    ] {
        let (base, served) = busy(calls, seconds).await;
        let rest = Rest::new(&base);
        let rest = match patient {
            true => rest.with_patience(count_wait),
            false => rest,
        };
        let answer = rest.post("/x", json!({})).await;
        assert_eq!(answer.is_ok(), well, "{answer:?}");
        if let Err(e) = answer {
            let busy = matches!(&e, RestError::Busy { message, .. } if message.contains("retry"));
            assert_eq!(busy, patient, "{e}");
            assert_ne!(e.to_string().contains("/x"), patient, "{e}");
        }
        assert_eq!(served.await.unwrap(), asked);
    }
    assert_eq!(WAITS.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_gateway_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rest = Rest::new(&format!("http://{}", listener.local_addr().unwrap()));
    let asked = tokio::spawn(async move { rest.get("/x").await });
    let mut peer = listener.accept().await.unwrap().0;
    let _read = peer.read(&mut [0; 4096]).await.unwrap();
    tokio::time::pause();
    let answer = asked.await.unwrap();
    let silent = matches!(answer, Err(RestError::Silent { after, .. }) if after == SILENT_AFTER);
    assert!(silent, "{answer:?}");
}

#[test]
fn any_text_is_escaped_to_one_segment() {
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
