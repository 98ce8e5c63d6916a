//! Nothing is sent after the last response of a connection, or inside of one.

use super::*;

/// A head that is refused, sent while another request is still to be answered.
const GARBAGE: &str = "GARBAGE\n\n";

#[tokio::test]
async fn nothing_follows_the_last_response() {
    let l = listening(quick(), 10, 10).await;
    let close = "host: x\r\nconnection: close\r\n";
    // The last chunks are not read for a 405, so hyper ends the connection by itself.
    let unread = "host: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n";
    for last in [
        format!("GET / HTTP/1.1\r\n{close}\r\n"),
        format!("GET /no HTTP/1.1\r\n{close}\r\n"),
        format!("GET /quiet HTTP/1.1\r\n{close}\r\n"),
        format!("POST /echo HTTP/1.1\r\n{close}content-length: 2\r\n\r\nab"),
        format!("POST / HTTP/1.1\r\n{unread}\r\n"),
        "GET /no HTTP/1.0\r\n\r\n".to_owned(),
        "GET /quiet HTTP/1.0\r\nconnection: keep-alive\r\n\r\n".to_owned(),
    ] {
        let mut tcp = l.sent(2, &format!("{last}{GARBAGE}")).await;
        let answer = rest(&mut tcp).await;
        let answers = answer.matches("HTTP/1.").count();
        assert_eq!(answers, 1, "{last:?}: {answer}");
        assert!(!answer.contains(" 400 "), "{last:?}: {answer}");
    }
    assert_eq!(l.count("refused", "malformed"), 0, "it was no request");
}

async fn reader_of_little(l: &Listening, text: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut tcp = socket.connect(l.addr).await.unwrap();
    tcp.write_all(text.as_bytes()).await.unwrap();
    tcp
}

#[tokio::test]
async fn nothing_follows_a_last_response_that_was_long_in_transit() {
    let l = listening(Timeouts::default(), 10, 10).await;
    let text = "GET /big HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut tcp = reader_of_little(&l, text).await;
    tcp.read_exact(&mut [0]).await.unwrap();
    tcp.write_all(GARBAGE.as_bytes()).await.unwrap();
    let answer = rest(&mut tcp).await;
    assert!(
        answer.ends_with('x'),
        "{:?}",
        answer.get(answer.len() - 99..)
    );
    assert_eq!(l.count("refused", "malformed"), 0);
}

#[tokio::test]
async fn a_refused_request_behind_a_long_response_is_answered_after_it() {
    let l = listening(Timeouts::default(), 10, 10).await;
    let mut tcp = reader_of_little(&l, "GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await;
    tcp.read_exact(&mut [0]).await.unwrap();
    tcp.write_all(GARBAGE.as_bytes()).await.unwrap();
    let answers = rest(&mut tcp).await;
    let after = answers.split_once("xHTTP/1.1 400 ");
    let (big, _) = after.expect("a second answer");
    assert!(big.len() > BIG - 1, "{}", big.len());
}

#[tokio::test]
async fn a_late_head_is_not_answered_inside_of_a_response() {
    let times = Timeouts {
        head_seconds: 1,
        ..Timeouts::default()
    };
    let l = listening(times, 10, 10).await;
    let mut tcp = reader_of_little(&l, "GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await;
    tcp.read_exact(&mut [0]).await.unwrap();
    tcp.write_all(b"GET / HT").await.unwrap();
    l.counted("cut", "head", 1).await;
    let answer = rest(&mut tcp).await;
    assert!(answer.len() < BIG, "it was cut on its way");
    assert!(
        !answer.contains(" 408 "),
        "{:?}",
        answer.get(answer.len() - 99..)
    );
}

#[tokio::test]
async fn one_address_does_not_take_the_final_responses_from_another() {
    let l = listening(Timeouts::default(), 64, 64).await;
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(l.sent(2, GARBAGE).await);
    }
    l.counted("refused", "malformed", 40).await;
    let mut other = l.sent(3, GARBAGE).await;
    let answer = rest(&mut other).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}
