//! Where an HTTP/1.1 connection is among its requests, and whether the next one can be read in one
//! way only.
//!
//! hyper takes some heads that two parties may read differently, such as `Transfer-Encoding` beside
//! `Content-Length` or `chunked` twice, and answers what it cannot parse with a bare status that has
//! neither a trace id nor a reason; it has no hook for either (`Server::on_error` in its
//! `proto/h1/role.rs`). So each head is judged here before hyper sees its end. What is refused never
//! gets to hyper: to it the connection just ends, after the answers to the requests before.
//!
//! To know where the next head begins, bodies are followed here too, and more strictly than hyper
//! does: whatever this and hyper could read differently ends the connection.

use http::{HeaderName, Method, Uri};

/// As many as hyper takes.
const MOST_HEADERS: usize = 100;
/// The longest line of a chunk's size with its extensions.
const MOST_CHUNK_LINE: usize = 4096;
/// The longest trailer section.
const MOST_TRAILERS: usize = 8192;
/// Digits of a chunk's size and of a length: neither overflows 64 bits.
const MOST_HEX_DIGITS: u32 = 15;
const MOST_DIGITS: usize = 18;

/// Why a request is refused before it is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// It is no HTTP/1.1 request, or could be read in two ways.
    Malformed,
    /// Its head is too large.
    TooLarge,
}

impl Unreadable {
    /// A metric label.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLarge => "head_size",
        }
    }
}

#[derive(Debug)]
pub(super) struct Requests {
    most: usize,
    at: At,
    /// What has come of the current head.
    head: Vec<u8>,
    refused: Option<Unreadable>,
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Head(Lines),
    /// A body of which so much is to come.
    Body(u64),
    Chunks(Chunk),
    /// Nothing that anybody looks at.
    End,
}

/// Finds the empty line behind the first that is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Lines {
    begun: bool,
    /// Bytes of the current line, its CR apart.
    line: usize,
}

impl Lines {
    /// Returns whether `byte` ends the head.
    fn ends_with(&mut self, byte: u8) -> bool {
        match byte {
            b'\n' if self.line == 0 => self.begun,
            b'\n' => {
                self.line = 0;
                false
            }
            b'\r' => false,
            _ => {
                self.begun = true;
                self.line += 1;
                false
            }
        }
    }
}

/// Where a chunked body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size {
        size: u64,
        digits: u32,
    },
    /// Behind the size, until the end of its line.
    Extension {
        size: u64,
        length: usize,
    },
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// Of a trailer section, whose current line has begun or not.
    Trailer {
        length: usize,
        line: bool,
    },
    TrailerLf {
        length: usize,
        line: bool,
    },
    Over,
}

impl Chunk {
    const BEGIN: Self = Self::Size { size: 0, digits: 0 };

    /// What comes behind `byte`; nothing when it must not be there.
    fn next(self, byte: u8) -> Option<Self> {
        match (self, byte) {
            (Self::Size { size, digits }, digit) if digit.is_ascii_hexdigit() => {
                let value = char::from(digit).to_digit(16)?;
                (digits < MOST_HEX_DIGITS).then_some(Self::Size {
                    size: size * 16 + u64::from(value),
                    digits: digits + 1,
                })
            }
            (Self::Size { digits: 0, .. }, _) => None,
            (Self::Size { size, .. } | Self::Extension { size, .. }, b'\r') => {
                Some(Self::SizeLf(size))
            }
            (Self::Size { size, .. }, b';') => Some(Self::Extension { size, length: 0 }),
            (Self::Size { .. }, _) => None,
            (Self::Extension { size, length }, byte) => {
                let fits = byte != b'\n' && length < MOST_CHUNK_LINE;
                let length = length + 1;
                fits.then_some(Self::Extension { size, length })
            }
            (Self::SizeLf(0), b'\n') => Some(Self::Trailer {
                length: 0,
                line: false,
            }),
            (Self::SizeLf(size), b'\n') => Some(Self::Data(size)),
            (Self::DataCr, b'\r') => Some(Self::DataLf),
            (Self::DataLf, b'\n') => Some(Self::BEGIN),
            (Self::Trailer { length, line }, b'\r') => Some(Self::TrailerLf { length, line }),
            (Self::Trailer { length, .. }, byte) => {
                let fits = byte != b'\n' && length < MOST_TRAILERS;
                let (length, line) = (length + 1, true);
                fits.then_some(Self::Trailer { length, line })
            }
            (Self::TrailerLf { line: false, .. }, b'\n') => Some(Self::Over),
            (Self::TrailerLf { length, .. }, b'\n') => Some(Self::Trailer {
                length,
                line: false,
            }),
            _ => None,
        }
    }
}

impl Requests {
    /// `most` is how long a head may be.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            at: At::Head(Lines::default()),
            head: Vec::new(),
            refused: None,
        }
    }

    /// Reads on, and returns how much of it hyper may see; when that is not all of it, nothing
    /// behind it may be.
    pub(super) fn read(&mut self, data: &[u8]) -> usize {
        let mut seen = 0;
        while seen < data.len() {
            let rest = &data[seen..];
            let good = match self.at {
                At::Head(lines) => self.read_head(lines, rest),
                At::Body(left) => Some(self.read_body(left, rest)),
                At::Chunks(Chunk::Data(left)) => Some(self.read_chunk(left, rest)),
                At::Chunks(chunk) => self.read_framing(chunk, rest[0]),
                At::End => None,
            };
            let Some(read) = good else {
                self.at = At::End;
                return seen;
            };
            seen += read;
        }
        seen
    }

    /// Why the connection ends, if that is because of a request that nobody answers otherwise.
    pub(super) fn refused(&self) -> Option<Unreadable> {
        self.refused
    }

    /// Whether hyper is to see nothing more.
    pub(super) fn is_over(&self) -> bool {
        self.at == At::End
    }

    /// Whether something of a request has come, and not all of it.
    pub(super) fn is_within(&self) -> bool {
        !matches!(self.at, At::Head(Lines { begun: false, .. }))
    }

    fn read_head(&mut self, mut lines: Lines, data: &[u8]) -> Option<usize> {
        let room = self.most.saturating_sub(self.head.len());
        let first = !lines.begun;
        let end = data.iter().position(|byte| lines.ends_with(*byte));
        let length = end.map_or(data.len(), |at| at + 1);
        if length > room {
            return self.refuse(Unreadable::TooLarge);
        }
        self.head.extend_from_slice(&data[..length]);
        let verdict = match end {
            Some(_) => judge(&self.head),
            // What is no HTTP at all does not end either; hyper looks at the first bytes as well.
            None if first => could_be(&self.head).map(|()| At::Head(lines)),
            None => Ok(At::Head(lines)),
        };
        match verdict {
            Ok(at) => self.at = at,
            Err(why) => return self.refuse(why),
        }
        if end.is_some() {
            self.head.clear();
        }
        Some(length)
    }

    fn refuse(&mut self, why: Unreadable) -> Option<usize> {
        self.refused = Some(why);
        None
    }

    fn read_body(&mut self, left: u64, data: &[u8]) -> usize {
        let (read, left) = part(left, data);
        self.at = match left {
            0 => At::Head(Lines::default()),
            left => At::Body(left),
        };
        read
    }

    fn read_chunk(&mut self, left: u64, data: &[u8]) -> usize {
        let (read, left) = part(left, data);
        self.at = At::Chunks(match left {
            0 => Chunk::DataCr,
            left => Chunk::Data(left),
        });
        read
    }

    fn read_framing(&mut self, chunk: Chunk, byte: u8) -> Option<usize> {
        self.at = match chunk.next(byte)? {
            Chunk::Over => At::Head(Lines::default()),
            next => At::Chunks(next),
        };
        Some(1)
    }
}

/// How much of `data` belongs to what is `left`, and what is left then.
fn part(left: u64, data: &[u8]) -> (usize, u64) {
    let read = usize::try_from(left).map_or(data.len(), |left| left.min(data.len()));
    (read, left - read as u64)
}

/// Whether this may become the head of a request.
fn could_be(head: &[u8]) -> Result<(), Unreadable> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let parsed = httparse::Request::new(&mut headers).parse(head);
    parsed.map(drop).map_err(unreadable)
}

fn unreadable(error: httparse::Error) -> Unreadable {
    match error {
        httparse::Error::TooManyHeaders => Unreadable::TooLarge,
        _ => Unreadable::Malformed,
    }
}

/// What comes behind a whole head.
fn judge(head: &[u8]) -> Result<At, Unreadable> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(head).map_err(unreadable)?;
    let whole = parsed == httparse::Status::Complete(head.len());
    let names = |request: &httparse::Request<'_, '_>| {
        let method = Method::from_bytes(request.method?.as_bytes()).ok()?;
        let target = request.path?.parse::<Uri>().ok()?;
        Some((method, target))
    };
    if !whole || names(&request).is_none() {
        return Err(Unreadable::Malformed);
    }
    body(&request)
}

/// RFC 9112, 6: a body has one coding or one length, and nobody can take it for another.
fn body(request: &httparse::Request<'_, '_>) -> Result<At, Unreadable> {
    let mut codings = values(request, &http::header::TRANSFER_ENCODING);
    let mut lengths = values(request, &http::header::CONTENT_LENGTH);
    let old = request.version == Some(0);
    let read = match (codings.next(), lengths.next()) {
        (None, None) => Some(At::Head(Lines::default())),
        (Some(coding), None) if !old => is_chunked(coding).then_some(At::Chunks(Chunk::BEGIN)),
        (None, Some(length)) => parse_length(length).map(|length| match length {
            0 => At::Head(Lines::default()),
            length => At::Body(length),
        }),
        _ => None,
    };
    let once = codings.next().is_none() && lengths.next().is_none();
    read.filter(|_| once).ok_or(Unreadable::Malformed)
}

fn values<'a>(
    request: &'a httparse::Request<'_, '_>,
    name: &HeaderName,
) -> impl Iterator<Item = &'a [u8]> {
    let named = request.headers.iter();
    let named = named.filter(move |h| h.name.eq_ignore_ascii_case(name.as_str()));
    named.map(|h| h.value.trim_ascii())
}

fn is_chunked(coding: &[u8]) -> bool {
    coding.eq_ignore_ascii_case(b"chunked")
}

fn parse_length(value: &[u8]) -> Option<u64> {
    let digits = value.len() <= MOST_DIGITS && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits)?;
    text.parse().ok()
}

#[cfg(test)]
mod tests {
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
                + &format!(
                    "5\r\nhello\r\n12C;a=\"b\"\r\n{long}\r\n0;x\r\nx-a: b\r\nx-c: d\r\n\r\n"
                ),
            "\r\n\r\n".to_owned() + &get(""),
            "GET /last HTTP/1.0\n\n".to_owned(),
        ]
        .concat();
        for pieces in 1..=text.len() {
            let (seen, requests) = read(text.as_bytes(), pieces);
            assert_eq!(seen, text.len(), "{pieces}");
            assert!(!requests.is_within() && !requests.is_over() && requests.head.is_empty());
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused_and_never_shown() {
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
                // Of the bad head, hyper never sees the end.
                assert!(seen >= before.len() && seen < before.len() + bad.len());
            }
        }
        let old = "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(read(old.as_bytes(), 1000).1.refused().is_some());
    }

    /// Good requests with a few bytes changed.
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
    fn whatever_comes_is_read_within_bounds_and_alike_in_pieces() {
        let mut random = StdRng::seed_from_u64(7);
        let mut refused = 0;
        for _ in 0..20_000 {
            let bytes = mutated(&mut random);
            let (at_once, whole) = read(&bytes, bytes.len());
            let (in_pieces, cut) = read(&bytes, random.random_range(1..=bytes.len()));
            assert!(whole.head.len() <= MOST && cut.head.len() <= MOST);
            assert_eq!(at_once == bytes.len(), !whole.is_over());
            // What is taken in one piece is taken in many; of a head that never ends, the first
            // piece alone is looked at.
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
    fn what_is_no_request_is_refused() {
        for bad in [
            "\x16\x03\x01\x02\x00\x01\x00",
            "GET\r\n\r\n",
            "GET /\r\n\r\n",
            "G@T / HTTP/1.1\r\n\r\n",
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
}
