//! Follows an HTTP/1.1 connection through its requests, and decides whether the next one can be parsed in
//! one way only.
//!
//! hyper accepts some heads that two parties may parse differently, such as `Transfer-Encoding` beside
//! `Content-Length` or `chunked` twice, and answers what it cannot parse with a bare status that has
//! neither a trace id nor a reason; it has no hook for either (`Server::on_error` in its
//! `proto/h1/role.rs`). So each head is judged here before hyper sees its end. A refused request never
//! reaches hyper, for which the connection just ends after the responses to the requests before.
//!
//! To find the next head, bodies are followed here too, and more strictly than hyper does: whatever the
//! two could parse differently ends the connection.

use http::{HeaderName, Method, Uri};

/// The number of headers that hyper accepts.
const MOST_HEADERS: usize = 100;
/// Maximum length of a chunk-size line with its extensions.
const MOST_CHUNK_LINE: usize = 4096;
/// Maximum length of the trailer section.
const MOST_TRAILERS: usize = 8192;
/// Maximum number of digits of a chunk size and of a length: neither overflows 64 bits.
const MOST_HEX_DIGITS: u32 = 15;
const MOST_DIGITS: usize = 18;

/// Why a request is refused before it reaches a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// It is not an HTTP/1.1 request, or could be parsed in two ways.
    Malformed,
    /// Its head is too large.
    TooLarge,
}

impl Unreadable {
    /// The value of the metric label.
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
    /// What has arrived of the current head.
    head: Vec<u8>,
    refused: Option<Unreadable>,
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Head(Lines),
    /// A body of which this many bytes are missing.
    Body(u64),
    Chunks(Chunk),
    /// Nothing that is parsed.
    End,
}

/// Finds the empty line that ends a head. Empty lines before the head are skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Lines {
    begun: bool,
    /// The length of the current line without its CR.
    line: usize,
    /// Whether the last byte was a CR.
    cr: bool,
}

/// Why [`Lines`] stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The head is complete.
    End,
    /// A line feed without a carriage return. RFC 9112, section 2.2 permits a server to take it for the
    /// end of a line, but a front end that takes it for part of a value has parsed another request.
    BareLf,
}

impl Lines {
    fn next(&mut self, byte: u8) -> Option<Stop> {
        let after_cr = std::mem::replace(&mut self.cr, byte == b'\r');
        match byte {
            b'\n' if !after_cr => return Some(Stop::BareLf),
            b'\n' if self.line == 0 => return self.begun.then_some(Stop::End),
            b'\n' => self.line = 0,
            b'\r' => {}
            _ => {
                self.begun = true;
                self.line += 1;
            }
        }
        None
    }
}

/// Where a chunked body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size {
        size: u64,
        digits: u32,
    },
    /// After the size, until the end of its line.
    Extension {
        size: u64,
        length: usize,
    },
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// In the trailer section, whose current line has begun or not.
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

    /// Returns what follows `byte`, or `None` when it is not allowed here.
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
                let fits = is_text(byte) && length < MOST_CHUNK_LINE;
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
                let fits = is_text(byte) && length < MOST_TRAILERS;
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

/// The bytes allowed in extensions and trailers: RFC 9110, section 5.5 allows no controls except the tab,
/// and what one party takes for the end of a string the next one ignores.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

impl Requests {
    /// Creates the state before the first request; `most` is the maximum size of a head.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            at: At::Head(Lines::default()),
            head: Vec::new(),
            refused: None,
        }
    }

    /// Parses further input, and returns how much of it hyper may see. Nothing after that may be shown
    /// when it is not all.
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

    /// Returns why the connection ends, if that is because of a request that nobody else answers.
    pub(super) fn refused(&self) -> Option<Unreadable> {
        self.refused
    }

    /// Whether hyper must see nothing more.
    pub(super) fn is_over(&self) -> bool {
        self.at == At::End
    }

    /// Whether a request has arrived in part.
    pub(super) fn is_within(&self) -> bool {
        !matches!(self.at, At::Head(Lines { begun: false, .. }))
    }

    fn read_head(&mut self, mut lines: Lines, data: &[u8]) -> Option<usize> {
        let room = self.most.saturating_sub(self.head.len());
        let first = !lines.begun;
        let mut bytes = data.iter().enumerate();
        let stop = bytes.find_map(|(at, byte)| Some((at, lines.next(*byte)?)));
        let length = stop.map_or(data.len(), |(at, _)| at + 1);
        if length > room {
            return self.refuse(Unreadable::TooLarge);
        }
        self.head.extend_from_slice(&data[..length]);
        let verdict = match stop {
            Some((_, Stop::End)) => judge(&self.head),
            Some((_, Stop::BareLf)) => Err(Unreadable::Malformed),
            // Input that is not HTTP does not end either; hyper checks the first bytes as well.
            None if first => could_be(&self.head).map(|()| At::Head(lines)),
            None => Ok(At::Head(lines)),
        };
        match verdict {
            Ok(at) => self.at = at,
            Err(why) => return self.refuse(why),
        }
        if stop.is_some() {
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

/// Returns how much of `data` belongs to the `left` bytes, and how many are left after it.
fn part(left: u64, data: &[u8]) -> (usize, u64) {
    let read = usize::try_from(left).map_or(data.len(), |left| left.min(data.len()));
    (read, left - read as u64)
}

/// Checks that this can be the beginning of a request head.
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

/// Returns what follows a complete head.
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

/// RFC 9112, section 6: a body has either one coding or one length, and one cannot be taken for the other.
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
mod tests;
