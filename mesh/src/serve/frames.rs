//! Finds the headers of HTTP/2 frames in a stream of bytes.

use crate::prefixed::Prefixed;
use std::convert::Infallible;

/// The length of a frame header: three bytes of length, one of type, one of flags, four of stream.
const HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;
/// Maximum number of padding bytes of a frame, with their length.
const MOST_PADDING: u32 = 256;

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    length: u32,
    kind: u8,
    flags: u8,
    pub(super) stream: u32,
}

impl Frame {
    #[cfg(test)]
    pub(super) fn new(kind: u8, flags: u8, length: u32, stream: u32) -> Self {
        Self {
            length,
            kind,
            flags,
            stream,
        }
    }

    fn parse(&[a, b, c, kind, flags, stream @ ..]: &[u8; HEADER]) -> Self {
        Self {
            length: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
        }
    }

    pub(super) fn is_headers(self) -> bool {
        self.kind == HEADERS
    }

    pub(super) fn is_data(self) -> bool {
        self.kind == DATA
    }

    /// Whether it is a DATA frame with content.
    pub(super) fn is_body(self) -> bool {
        let padding = if self.flags & PADDED == 0 {
            0
        } else {
            MOST_PADDING
        };
        self.is_data() && self.length > padding
    }

    pub(super) fn ends_a_body(self) -> bool {
        self.is_data() && self.flags & END_STREAM != 0
    }

    /// Whether the receiver must acknowledge the frame.
    pub(super) fn needs_ack(self) -> bool {
        matches!(self.kind, SETTINGS | PING)
    }

    pub(super) fn is_goaway(self) -> bool {
        self.kind == GOAWAY
    }
}

/// The position in a stream of frames.
#[derive(Debug, Default)]
pub(super) struct Frames(Prefixed<HEADER>);

impl Frames {
    /// Passes the header of every frame that begins in `data` to `each`.
    pub(super) fn read(&mut self, data: &[u8], mut each: impl FnMut(Frame)) {
        let Ok(()) = self.0.read(data, |header| {
            let frame = Frame::parse(header);
            each(frame);
            Ok::<_, Infallible>(usize::try_from(frame.length).unwrap_or(usize::MAX))
        });
    }

    /// Whether the next byte begins a frame.
    pub(super) fn is_between(&self) -> bool {
        self.0.is_between()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    const WINDOW_UPDATE: u8 = 8;

    fn bytes(kind: u8, flags: u8, length: u32) -> Vec<u8> {
        let mut bytes = length.to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags, 0x80, 0, 0, 5]);
        bytes.resize(HEADER + length as usize, 0xff);
        bytes
    }

    fn frame(kind: u8, flags: u8, length: u32) -> Frame {
        Frame::new(kind, flags, length, 5)
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_split() {
        let shapes = [
            (HEADERS, 4, 30),
            (DATA, 0, 70_000),
            (SETTINGS, 0, 0),
            (WINDOW_UPDATE, 0, 4),
            (0xfa, 0xff, 12),
            (DATA, 1, 0),
        ];
        let all: Vec<u8> = shapes
            .iter()
            .flat_map(|&(k, f, l)| bytes(k, f, l))
            .collect();
        let expected: Vec<Frame> = shapes.iter().map(|&(k, f, l)| frame(k, f, l)).collect();
        for pieces in (1..64).chain([9, 16_384, all.len()]) {
            let (mut frames, mut seen) = (Frames::default(), Vec::new());
            for piece in all.chunks(pieces) {
                frames.read(piece, |f| seen.push(f));
            }
            assert_eq!(seen, expected, "{pieces}");
            assert!(frames.is_between());
        }
        // Split in two, at every byte.
        let short = [bytes(PING, 0, 8), bytes(WINDOW_UPDATE, 0, 4)].concat();
        for at in 0..=short.len() {
            let (mut frames, mut seen) = (Frames::default(), 0);
            frames.read(&short[..at], |_| seen += 1);
            let whole = [0, HEADER + 8, short.len()];
            assert_eq!(frames.is_between(), whole.contains(&at), "{at}");
            frames.read(&short[at..], |_| seen += 1);
            assert_eq!(seen, 2, "{at}");
        }
    }

    #[test]
    fn arbitrary_bytes_are_the_same_frames_however_they_are_split() {
        let mut random = StdRng::seed_from_u64(7);
        for _ in 0..500 {
            let mut bytes = vec![0; random.random_range(0..4096)];
            random.fill(&mut bytes[..]);
            // Short frames, or everything would be the payload of the first.
            bytes.iter_mut().step_by(7).for_each(|byte| *byte = 0);
            let (mut whole, mut at_once) = (Frames::default(), Vec::new());
            whole.read(&bytes, |f| at_once.push(f));
            let (mut cut, mut seen) = (Frames::default(), Vec::new());
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (piece, next) = rest.split_at(random.random_range(1..=rest.len().min(64)));
                cut.read(piece, |f| seen.push(f));
                rest = next;
            }
            assert_eq!(seen, at_once);
            assert_eq!(cut.is_between(), whole.is_between());
        }
    }
}
