//! Requests that could be parsed in two ways, or not at all, are refused; every response can be traced.

use super::*;

/// Requests that two parties may parse in two ways, or not at all.
const AMBIGUOUS: [&str; 22] = [
    "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: identity\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /echo HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 5, 6\r\n\r\nhello!",
    "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\nhello",
    "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: x\r\nx-a: b\r\n folded\r\n\r\n",
    "GET / HTTP/1.1\r\n host: x\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: x\r\nx-a: b\rc: d\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: x\r\nx-a: b\0\r\n\r\n",
    "GET / HTTP/3.0\r\nhost: x\r\n\r\n",
    "GET\r\n\r\n",
    "\x16\x03\x01\x02\x00\x01\x00\x01\x02\x03\x03",
];

fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = answer.lines();
    lines.find_map(|l| l.strip_prefix(name)?.strip_prefix(": "))
}

#[tokio::test]
async fn an_ambiguous_request_is_refused_with_a_trace_id() {
    let l = listening(quick(), 10, 10).await;
    for text in AMBIGUOUS {
        // What follows is not parsed: it may be what was smuggled.
        let text = format!("{text}GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut tcp = l.sent(2, &text).await;
        let answer = rest(&mut tcp).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{text:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{text:?}: {answer}");
        assert!(answer.ends_with("malformed"), "{text:?}: {answer}");
        assert_eq!(header(&answer, "x-trace-id").map(str::len), Some(32));
    }
    assert_eq!(l.count("refused", "malformed"), AMBIGUOUS.len() as u64);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_with_a_trace_id() {
    let l = listening(quick(), 10, 10).await;
    let long = format!(
        "GET / HTTP/1.1\r\nhost: x\r\nx-a: {}\r\n\r\n",
        "a".repeat(17_000)
    );
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x-a: b\r\n".repeat(101));
    for text in [long, many] {
        let mut tcp = l.sent(2, &text).await;
        let answer = rest(&mut tcp).await;
        assert!(answer.starts_with("HTTP/1.1 431 ") && answer.ends_with("large"));
        assert!(header(&answer, "x-trace-id").is_some(), "{answer}");
    }
    assert_eq!(l.count("refused", "head_size"), 2);
}

#[tokio::test]
async fn requests_before_the_refused_one_are_answered() {
    let l = listening(quick(), 10, 10).await;
    for before in ["/", "/quiet"] {
        let text = format!("GET {before} HTTP/1.1\r\nhost: x\r\n\r\n{}", AMBIGUOUS[0]);
        let mut tcp = l.sent(2, &text).await;
        let answers = rest(&mut tcp).await;
        let (good, bad) = (answers.find(" 200 "), answers.find(" 400 "));
        assert!(good.is_some() && good < bad, "{answers}");
    }
    // In one piece or in many, a body is not a head.
    let body = "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nGET\r\n\r\n\r\n";
    let chunks = "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: Chunked\r\nconnection: close\r\n\r\n4;x=y\r\necho\r\n0\r\nx-t: u\r\n\r\n";
    let mut tcp = l.from(2).await;
    for byte in format!("{body}{chunks}").as_bytes() {
        tcp.write_all(&[*byte]).await.unwrap();
    }
    let answers = rest(&mut tcp).await;
    assert_eq!(answers.matches(" 200 ").count(), 2, "{answers}");
    assert!(answers.ends_with("echo"), "{answers}");
}

#[tokio::test]
async fn every_response_has_a_trace_id() {
    let l = listening(quick(), 10, 10).await;
    for path in ["/", "/no/such/path"] {
        let text = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut tcp = l.sent(2, &text).await;
        let answer = rest(&mut tcp).await;
        assert_eq!(
            header(&answer, "x-trace-id").map(str::len),
            Some(32),
            "{answer}"
        );
    }
}
