//! Whether a peer sends more frames than the calls on its connection explain.
//!
//! h2 answers or takes note of WINDOW_UPDATE, PRIORITY, PING, SETTINGS and frames of unknown kinds
//! without end, and a peer that sends nothing else keeps a processor busy. Here such a frame is paid
//! for: out of what useful frames have earned, and past that at a rate. A peer that is sent a great
//! deal may say a great deal about its windows; a limit on frames by time alone, as nghttp2 has it,
//! would cut it, and a share of all frames, as Envoy counts, would need a good beginning first.
//!
//! A frame is useful as long as h2 looks at its stream. After GOAWAY, h2 drops whatever belongs to a
//! stream that was opened later, so those frames are paid for as well. What is earned is bounded: a
//! peer cannot save up for a flood.

use super::frames::Frame;
use tars_runtime::{
    clock::Clock,
    rate::{Cell, Rate},
};

/// A call may be given up, changed in priority, and have its window opened some times.
const BY_CALL: u64 = 8;
/// A frame of an answer is followed by a WINDOW_UPDATE for its stream, one for the connection, and
/// now and then a PING that measures the way.
const BY_ANSWER: u64 = 4;
/// What a frame of a request's body and a question of ours may be followed by.
const BY_OTHER: u64 = 1;

/// The most that a peer earns by what it sends: what the calls of a busy connection may be followed
/// by at once.
const MOST_BY_REQUESTS: u64 = 8192;
/// The most that it earns by what it is sent: a peer may open its window to 2 GiB and say nothing
/// until all of it has come, in frames of 16 KiB.
const MOST_BY_ANSWERS: u64 = BY_ANSWER << (31 - 14);

/// What a peer may still send that no call explains.
#[derive(Debug)]
pub(super) struct Allowance {
    earned: u64,
    rate: Rate,
    cell: Cell,
    /// The highest stream that the peer has opened.
    last_stream: u32,
    /// The highest stream that the peer had opened at the last GOAWAY.
    goaway: Option<u32>,
}

impl Allowance {
    /// `rate` holds for frames that nothing has earned.
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            earned: 0,
            rate,
            cell: Cell::default(),
            last_stream: 0,
            goaway: None,
        }
    }

    pub(super) fn last_stream(&self) -> u32 {
        self.last_stream
    }

    /// Accounts for a frame of the peer; returns whether it may go on.
    pub(super) fn received(&mut self, frame: Frame, clock: &Clock) -> bool {
        // HEADERS of a stream that is open already are trailers, or an attack.
        let opens_a_call = frame.is_headers() && frame.stream > self.last_stream;
        self.last_stream = self
            .last_stream
            .max(if opens_a_call { frame.stream } else { 0 });
        if self.goaway.is_some_and(|last| frame.stream > last) {
            return self.spend(clock);
        }
        if opens_a_call {
            self.earn(BY_CALL, MOST_BY_REQUESTS);
        } else if frame.is_body() {
            self.earn(BY_OTHER, MOST_BY_REQUESTS);
        } else if !frame.ends_a_body() {
            return self.spend(clock);
        }
        true
    }

    /// Accounts for a frame to the peer.
    pub(super) fn sent(&mut self, frame: Frame) {
        if frame.is_body() {
            self.earn(BY_ANSWER, MOST_BY_ANSWERS);
        } else if frame.is_question() {
            self.earn(BY_OTHER, MOST_BY_ANSWERS);
        } else if frame.is_goaway() {
            // A graceful end says it twice. Streams that were opened in between are served.
            self.goaway = Some(self.last_stream);
        }
    }

    /// Adds `by`, up to `most`; what was earned above that in another way is kept.
    fn earn(&mut self, by: u64, most: u64) {
        self.earned = self.earned.max((self.earned + by).min(most));
    }

    fn spend(&mut self, clock: &Clock) -> bool {
        if self.earned > 0 {
            self.earned -= 1;
            return true;
        }
        self.cell.take(&self.rate, clock.monotonic()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const RATE: Rate = Rate::every(Duration::from_millis(100), 100);
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    const WINDOW_UPDATE: u8 = 8;
    const CONTINUATION: u8 = 9;
    const END_STREAM: u8 = 1;
    const PADDED: u8 = 8;

    fn frame(kind: u8, flags: u8, length: u32) -> Frame {
        Frame::new(kind, flags, length, 5)
    }

    fn open(stream: u32) -> Frame {
        Frame::new(HEADERS, 5, 100, stream)
    }

    fn allowance() -> (Allowance, Clock) {
        (Allowance::new(RATE), Clock::manual(Duration::ZERO))
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
            let (mut allowance, clock) = allowance();
            assert_eq!(passed(&mut allowance, frame, &clock), 100, "{frame:?}");
            clock.advance(Duration::from_secs(1));
            assert_eq!(passed(&mut allowance, frame, &clock), 10, "{frame:?}");
            clock.advance(Duration::from_secs(3600));
            assert_eq!(passed(&mut allowance, frame, &clock), 100, "{frame:?}");
        }
    }

    #[test]
    fn useful_frames_are_free() {
        let (mut allowance, clock) = allowance();
        for stream in (1..20_000).step_by(2) {
            assert!(allowance.received(open(stream), &clock));
        }
        for frame in [
            frame(DATA, 0, 1),
            frame(DATA, END_STREAM, 0),
            frame(DATA, PADDED, 1000),
        ] {
            assert_eq!(passed(&mut allowance, frame, &clock), 10_000, "{frame:?}");
        }
    }

    #[test]
    fn a_peer_that_is_sent_much_may_open_its_windows_as_often() {
        let (mut allowance, clock) = allowance();
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
        let (mut allowance, clock) = allowance();
        for _ in 0..10_000 {
            allowance.sent(frame(PING, 0, 8));
            assert!(allowance.received(frame(PING, 1, 8), &clock));
        }
    }

    #[test]
    fn calls_that_are_given_up_are_explained() {
        let (mut allowance, clock) = allowance();
        for stream in (1..20_000).step_by(2) {
            assert!(allowance.received(open(stream), &clock));
            let reset = Frame::new(RST_STREAM, 0, 4, stream);
            assert!(allowance.received(reset, &clock));
        }
    }

    #[test]
    fn headers_of_a_stream_that_is_open_are_paid_for() {
        let (mut allowance, clock) = allowance();
        assert!(allowance.received(open(5), &clock));
        let trailers = BY_CALL as usize + 100;
        assert_eq!(passed(&mut allowance, open(5), &clock), trailers);
        assert_eq!(passed(&mut allowance, open(3), &clock), 0);
        assert_eq!(allowance.last_stream(), 5);
    }

    #[test]
    fn after_goaway_frames_of_new_streams_are_paid_for() {
        for kind in [HEADERS, DATA] {
            let (mut allowance, clock) = allowance();
            assert!(allowance.received(open(5), &clock));
            allowance.sent(frame(GOAWAY, 0, 8));
            let mut streams = (7..).step_by(2);
            let passed = streams.position(|stream| {
                let frame = Frame::new(kind, 0, 100, stream);
                !allowance.received(frame, &clock)
            });
            assert_eq!(passed, Some(BY_CALL as usize + 100));
            // What was under way goes on.
            for _ in 0..1000 {
                assert!(allowance.received(frame(DATA, 0, 100), &clock));
            }
        }
    }

    #[test]
    fn streams_between_two_goaways_are_served() {
        let (mut allowance, clock) = allowance();
        allowance.sent(frame(GOAWAY, 0, 8));
        assert!(allowance.received(open(5), &clock));
        allowance.sent(frame(GOAWAY, 0, 8));
        assert_eq!(passed(&mut allowance, frame(DATA, 0, 100), &clock), 10_000);
        assert!(passed(&mut allowance, Frame::new(DATA, 0, 100, 7), &clock) < 10_000);
    }

    #[test]
    fn nobody_saves_up_for_a_flood() {
        let update = frame(WINDOW_UPDATE, 0, 4);
        let spent = |allowance: &mut Allowance, clock: &Clock| {
            let mut spent = 0;
            while allowance.received(update, clock) {
                spent += 1;
            }
            spent
        };
        let (mut allowance, clock) = allowance();
        for _ in 0..1_000_000 {
            allowance.received(frame(DATA, 0, 1), &clock);
        }
        assert_eq!(spent(&mut allowance, &clock), MOST_BY_REQUESTS + 100);
        clock.advance(Duration::from_secs(3600));
        for _ in 0..1_000_000 {
            allowance.sent(frame(DATA, 0, 1));
        }
        allowance.received(frame(DATA, 0, 1), &clock);
        assert_eq!(spent(&mut allowance, &clock), MOST_BY_ANSWERS + 100);
    }
}
