//! What a peer sends of HTTP/2 frames, by their headers alone: whether it says more about the
//! connection than the calls on it explain.
//!
//! h2 answers or takes note of WINDOW_UPDATE, PRIORITY, PING, SETTINGS and frames of unknown kinds
//! without end, and a peer that sends nothing else keeps a processor busy. Here such a frame is paid
//! for: out of what useful frames have earned, and past that at a rate. A peer that is sent a great
//! deal may say a great deal about its windows; a limit on frames by time alone, as nghttp2 has it,
//! would cut it, and a share of all frames, as Envoy counts, would need a good beginning first.

use std::time::Duration;
use tars_runtime::clock::{Clock, Monotonic};

/// Three bytes of length, one of kind, one of flags, four of stream.
const HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;
/// What a padded frame may have beside its payload.
const MOST_PADDING: u32 = 256;

/// A call may be given up, changed in priority, and have its window opened some times.
const BY_CALL: u64 = 8;
/// A frame of an answer is followed by a WINDOW_UPDATE for its stream, one for the connection, and
/// now and then a PING that measures the way.
const BY_ANSWER: u64 = 4;
/// What a frame of a request's body and a question of ours may be followed by.
const BY_OTHER: u64 = 1;

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    length: u32,
    kind: u8,
    flags: u8,
    pub(super) stream: u32,
}

impl Frame {
    fn parse(&[a, b, c, kind, flags, stream @ ..]: &[u8; HEADER]) -> Self {
        Self {
            length: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
        }
    }

    pub(super) fn opens_a_call(self) -> bool {
        self.kind == HEADERS
    }

    /// A piece of a body, of which there is something.
    fn is_body(self) -> bool {
        let padding = if self.flags & PADDED == 0 {
            0
        } else {
            MOST_PADDING
        };
        self.kind == DATA && self.length > padding
    }

    fn ends_a_body(self) -> bool {
        self.kind == DATA && self.flags & END_STREAM != 0
    }
}

/// Where a stream of bytes is among its frames.
#[derive(Debug, Default)]
pub(super) struct Frames {
    header: [u8; HEADER],
    have: usize,
    /// Bytes of the current frame's payload that have not passed yet.
    left: usize,
}

impl Frames {
    /// Shows the header of every frame that begins in `data`.
    pub(super) fn read(&mut self, mut data: &[u8], mut each: impl FnMut(Frame)) {
        while !data.is_empty() {
            let inside = self.left.min(data.len());
            self.left -= inside;
            data = &data[inside..];
            let wanted = (HEADER - self.have).min(data.len());
            self.header[self.have..self.have + wanted].copy_from_slice(&data[..wanted]);
            self.have += wanted;
            data = &data[wanted..];
            if self.have == HEADER {
                let frame = Frame::parse(&self.header);
                self.have = 0;
                self.left = usize::try_from(frame.length).unwrap_or(usize::MAX);
                each(frame);
            }
        }
    }

    /// Whether the next byte begins a frame.
    pub(super) fn is_between(&self) -> bool {
        self.have == 0 && self.left == 0
    }
}

/// So many in a second, and so many at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) per_second: u32,
    pub(super) burst: u32,
}

/// A bucket that fills at its rate.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    /// When it is full again.
    full: Monotonic,
}

impl Bucket {
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            rate,
            full: Monotonic::default(),
        }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&mut self, now: Monotonic) -> bool {
        let one = Duration::from_secs(1) / self.rate.per_second.max(1);
        let full = self.full.max(now) + one;
        let taken = full.since(now) <= one * self.rate.burst;
        if taken {
            self.full = full;
        }
        taken
    }

    pub(super) fn is_full(&self, now: Monotonic) -> bool {
        self.full <= now
    }
}

/// What a peer may still send that no call explains.
#[derive(Debug)]
pub(super) struct Allowance {
    earned: u64,
    bucket: Bucket,
}

impl Allowance {
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            earned: 0,
            bucket: Bucket::new(rate),
        }
    }

    /// Accounts for a frame of the peer; returns whether it may go on.
    pub(super) fn received(&mut self, frame: Frame, clock: &Clock) -> bool {
        if frame.opens_a_call() {
            self.earned += BY_CALL;
        } else if frame.is_body() {
            self.earned += BY_OTHER;
        } else if !frame.ends_a_body() {
            return self.spend(clock);
        }
        true
    }

    /// Accounts for a frame to the peer.
    pub(super) fn sent(&mut self, frame: Frame) {
        if frame.is_body() {
            self.earned += BY_ANSWER;
        } else if matches!(frame.kind, SETTINGS | PING) {
            self.earned += BY_OTHER;
        }
    }

    fn spend(&mut self, clock: &Clock) -> bool {
        if self.earned > 0 {
            self.earned -= 1;
            return true;
        }
        self.bucket.take(clock.monotonic())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    const RATE: Rate = Rate {
        per_second: 10,
        burst: 100,
    };
    const RST_STREAM: u8 = 3;
    const WINDOW_UPDATE: u8 = 8;
    const CONTINUATION: u8 = 9;

    fn bytes(kind: u8, flags: u8, length: u32) -> Vec<u8> {
        let mut bytes = length.to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags, 0x80, 0, 0, 5]);
        bytes.resize(HEADER + length as usize, 0xff);
        bytes
    }

    fn frame(kind: u8, flags: u8, length: u32) -> Frame {
        Frame {
            length,
            kind,
            flags,
            stream: 5,
        }
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
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
        // Once in two, at every byte.
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
    fn any_bytes_are_the_same_frames_however_they_are_cut() {
        let mut random = StdRng::seed_from_u64(7);
        for _ in 0..500 {
            let mut bytes = vec![0; random.random_range(0..4096)];
            random.fill(&mut bytes[..]);
            // Short frames, or all of it would be the payload of the first.
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

    /// How many of these in a row are let in.
    fn passed(allowance: &mut Allowance, frame: Frame, clock: &Clock) -> usize {
        let received = || allowance.received(frame, clock);
        std::iter::repeat_with(received)
            .take(10_000)
            .take_while(|passed| *passed)
            .count()
    }

    #[test]
    fn frames_that_no_call_explains_are_bounded_by_burst_and_rate() {
        for frame in [
            frame(WINDOW_UPDATE, 0, 4),
            frame(2, 0, 5),
            frame(RST_STREAM, 0, 4),
            frame(SETTINGS, 0, 0),
            frame(SETTINGS, 1, 0),
            frame(PING, 0, 8),
            frame(PING, 1, 8),
            frame(7, 0, 8),
            frame(CONTINUATION, 0, 0),
            frame(DATA, 0, 0),
            frame(DATA, PADDED, 200),
            frame(0xfa, 0, 12),
        ] {
            let clock = Clock::manual(Duration::ZERO);
            let mut allowance = Allowance::new(RATE);
            assert_eq!(passed(&mut allowance, frame, &clock), 100, "{frame:?}");
            clock.advance(Duration::from_secs(1));
            assert_eq!(passed(&mut allowance, frame, &clock), 10, "{frame:?}");
            clock.advance(Duration::from_secs(3600));
            assert_eq!(passed(&mut allowance, frame, &clock), 100, "{frame:?}");
        }
    }

    #[test]
    fn useful_frames_are_free() {
        let clock = Clock::manual(Duration::ZERO);
        let mut allowance = Allowance::new(RATE);
        for frame in [
            frame(HEADERS, 4, 100),
            frame(DATA, 0, 1),
            frame(DATA, END_STREAM, 0),
            frame(DATA, PADDED, 1000),
        ] {
            assert_eq!(passed(&mut allowance, frame, &clock), 10_000, "{frame:?}");
        }
    }

    #[test]
    fn a_peer_that_is_sent_much_may_open_its_windows_as_often() {
        let clock = Clock::manual(Duration::ZERO);
        let mut allowance = Allowance::new(RATE);
        // A whole window is sent before the first word about it comes back.
        for _ in 0..100_000 {
            allowance.sent(frame(DATA, 0, 16_384));
        }
        for _ in 0..200_000 {
            assert!(allowance.received(frame(WINDOW_UPDATE, 0, 4), &clock));
        }
    }

    #[test]
    fn whoever_is_asked_may_answer() {
        let clock = Clock::manual(Duration::ZERO);
        let mut allowance = Allowance::new(RATE);
        for _ in 0..10_000 {
            allowance.sent(frame(PING, 0, 8));
            assert!(allowance.received(frame(PING, 1, 8), &clock));
        }
    }

    #[test]
    fn calls_that_are_given_up_are_explained() {
        let clock = Clock::manual(Duration::ZERO);
        let mut allowance = Allowance::new(RATE);
        for _ in 0..10_000 {
            assert!(allowance.received(frame(HEADERS, 5, 100), &clock));
            assert!(allowance.received(frame(RST_STREAM, 0, 4), &clock));
        }
    }
}
