//! Requests that can be parsed in one way only, and others that cannot.

use super::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

const MOST: usize = 1024;

fn read(text: &[u8], pieces: usize) -> (usize, Requests) {
    let mut requests = Requests::new(MOST);
    let mut seen = 0;
    for piece in text.chunks(pieces) {
        let good = requests.read(piece);
        seen += good;
        if good < piece.len() {
            break;
        }
    }
    (seen, requests)
}

fn get(headers: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: x\r\n{headers}\r\n")
}

#[test]
fn requests_are_followed_however_they_arrive() {
    let long = "x".repeat(300);
    let text = [
        get("content-length: 0\r\n"),
        get("content-length: 5\r\n") + "GET /",
        get("Transfer-Encoding:  Chunked \r\n") + "0\r\n\r\n",
        get("transfer-encoding: chunked\r\n")
            + &format!("5\r\nhello\r\n12C;a=\"b\tä\"\r\n{long}\r\n0;x\r\nx-a: b\r\nx-c: d\r\n\r\n"),
        "\r\n\r\n".to_owned() + &get(""),
        "GET /last HTTP/1.0\r\n\r\n".to_owned(),
    ]
    .concat();
    for pieces in 1..=text.len() {
        let (seen, requests) = read(text.as_bytes(), pieces);
        assert_eq!(seen, text.len(), "{pieces}");
        assert!(!requests.is_within() && !requests.is_over() && requests.head.is_empty());
    }
}

#[test]
fn an_ambiguous_request_is_refused_and_never_shown() {
    for headers in [
        "transfer-encoding: chunked, chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: identity\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked;q=1\r\n",
        "transfer-encoding: \"chunked\"\r\n",
        "transfer-encoding: ,chunked\r\n",
        "transfer-encoding:\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "content-length: 5\r\ntransfer-encoding: identity\r\n",
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: 5\r\ncontent-length: 5\r\n",
        "content-length: 5, 5\r\n",
        "content-length: +5\r\n",
        "content-length: -5\r\n",
        "content-length: 0x5\r\n",
        "content-length: 5 5\r\n",
        "content-length:\r\n",
        "content-length: 99999999999999999999\r\n",
        "content-length : 5\r\n",
        "content-length\r\n",
        "x-a: b\r\n folded\r\n",
        "x-a: b\r\n\tfolded\r\n",
        " x-a: b\r\n",
        "x a: b\r\n",
        ": b\r\n",
        "x-a: b\rx-c: d\r\n",
        "x-a: b\0\r\n",
        "x-a: b\n",
        "x-a: b\nx-c: d\r\n",
        "x-a: b\ntransfer-encoding: chunked\r\n",
        "\n",
        "x\u{e4}: b\r\n",
    ] {
        let (before, bad) = (get("content-length: 3\r\n") + "abc", get(headers));
        let text = format!("{before}{bad}5\r\nhello\r\n0\r\n\r\n");
        for pieces in 1..=text.len() {
            let (seen, requests) = read(text.as_bytes(), pieces);
            assert_eq!(
                requests.refused(),
                Some(Unreadable::Malformed),
                "{headers:?}"
            );
            // hyper never sees the end of the bad head.
            assert!(seen >= before.len() && seen < before.len() + bad.len());
        }
    }
    let old = "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n";
    assert!(read(old.as_bytes(), 1000).1.refused().is_some());
}

/// Valid requests with a few bytes changed.
fn mutated(random: &mut StdRng) -> Vec<u8> {
    let seeds = [
        get("content-length: 12\r\n") + "twelve bytes" + &get(""),
        get("transfer-encoding: chunked\r\n") + "3;a=b\r\nabc\r\n0\r\nx: y\r\n\r\n" + &get(""),
        get("content-length: 1\r\ncontent-length: 1\r\n") + "x",
    ];
    let mut bytes = seeds[random.random_range(0..seeds.len())]
        .clone()
        .into_bytes();
    for _ in 0..random.random_range(0..4) {
        let odd = *b"\r\n\0 :;,0aF\xff"
            .get(random.random_range(0..11))
            .unwrap();
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..3) {
            0 => bytes[at] = odd,
            1 => bytes.insert(at, odd),
            _ => drop(bytes.remove(at)),
        }
    }
    bytes
}

#[test]
fn arbitrary_input_is_parsed_within_bounds_and_alike_in_pieces() {
    let mut random = StdRng::seed_from_u64(7);
    let mut refused = 0;
    for _ in 0..20_000 {
        let bytes = mutated(&mut random);
        let (at_once, whole) = read(&bytes, bytes.len());
        let (in_pieces, cut) = read(&bytes, random.random_range(1..=bytes.len()));
        assert!(whole.head.len() <= MOST && cut.head.len() <= MOST);
        assert_eq!(at_once == bytes.len(), !whole.is_over());
        // What is accepted in one piece is accepted in many; of a head that never ends, the first piece
        // alone is checked.
        if !whole.is_over() {
            assert_eq!((in_pieces, cut.at), (at_once, whole.at));
        } else if cut.is_over() {
            assert_eq!(cut.refused(), whole.refused());
        } else {
            assert!(matches!(cut.at, At::Head(_)) && cut.is_within());
        }
        refused += usize::from(whole.is_over());
    }
    assert!((2_000..18_000).contains(&refused), "{refused}");
}

#[test]
fn bytes_that_are_not_a_request_are_refused() {
    for bad in [
        "\x16\x03\x01\x02\x00\x01\x00",
        "GET\r\n\r\n",
        "GET /\r\n\r\n",
        "G@T / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\n\n",
        "GET / HTTP/1.1\n\r\n",
        "GET / HTTP/1.1\r\n\n",
        "\nGET / HTTP/1.1\r\n\r\n",
        "\r\n\nGET / HTTP/1.1\r\n\r\n",
        "GET  / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1 \r\n\r\n",
        "GET / HTTP/1.2\r\n\r\n",
        "GET / HTTP/2.0\r\n\r\n",
        "GET / http/1.1\r\n\r\n",
        "GET /\u{7f} HTTP/1.1\r\n\r\n",
        "GET no-slash HTTP/1.1 x\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let (seen, requests) = read(bad.as_bytes(), bad.len());
        assert_eq!(
            (seen, requests.refused()),
            (0, Some(Unreadable::Malformed)),
            "{bad:?}"
        );
        assert!(requests.is_over());
    }
}

#[test]
fn a_head_that_is_too_large_is_refused_before_it_ends() {
    let many = "a: b\r\n".repeat(MOST_HEADERS);
    let mut requests = Requests::new(64 << 10);
    requests.read(get(&many).as_bytes());
    assert_eq!(
        requests.refused(),
        Some(Unreadable::TooLarge),
        "with the host"
    );
    let long = format!("GET / HTTP/1.1\r\nx-a: {}", "b".repeat(MOST));
    let blank = "\r\n".repeat(MOST);
    for text in [long, blank] {
        for pieces in 1..=text.len() {
            let (seen, requests) = read(text.as_bytes(), pieces);
            assert_eq!(requests.refused(), Some(Unreadable::TooLarge), "{pieces}");
            assert!(seen <= MOST && requests.head.len() <= MOST);
        }
    }
}

#[test]
fn a_body_that_could_end_elsewhere_ends_the_connection() {
    let head = get("transfer-encoding: chunked\r\n");
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "\r\n0\r\n\r\n",
        ";x\r\n",
        " 5\r\nhello\r\n",
        "5 \r\nhello\r\n",
        "0x5\r\nhello\r\n",
        "-5\r\n",
        "g\r\n",
        "5;a\nb\r\n",
        "5;a\0b\r\nhello\r\n0\r\n\r\n",
        "5;a=\"\x1b\"\r\nhello\r\n0\r\n\r\n",
        "5;a\x7f\r\nhello\r\n0\r\n\r\n",
        "0\r\nx: y\0\r\n\r\n",
        "0\r\nx\x08: y\r\n\r\n",
        "1234567890123456\r\n",
        "0\r\nx: y\n\r\n",
        "0\n\n",
        "0\r\n\r\r",
        &format!("5;{}\r\n", "e".repeat(MOST_CHUNK_LINE + 1)),
        &format!("0\r\n{}\r\n", "t".repeat(MOST_TRAILERS + 1)),
    ] {
        let text = format!("{head}{body}{}", get(""));
        for pieces in [1, 2, 3, 7, text.len()] {
            let (seen, requests) = read(text.as_bytes(), pieces);
            assert!(requests.is_over() && requests.is_within(), "{body:?}");
            assert_eq!(requests.refused(), None, "its request was read: {body:?}");
            assert!(
                seen >= head.len() && seen < head.len() + body.len(),
                "{body:?}"
            );
        }
    }
}
