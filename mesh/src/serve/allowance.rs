//! Decides whether a peer sends more frames than the calls on its connection explain.
//!
//! h2 answers or processes WINDOW_UPDATE, PRIORITY, PING, SETTINGS and frames of unknown types without
//! limit, and a peer that sends nothing else keeps a processor busy. Here such a frame is charged: first to a
//! credit that useful frames earn, then to a rate. A peer that receives a lot may send a lot of window
//! updates. A limit by time alone, as in nghttp2, would cut such a peer, and a ratio of all frames, as in
//! Envoy, would require a good start first.
//!
//! A frame is useful as long as h2 processes its stream. After GOAWAY, h2 drops whatever belongs to a stream
//! that was opened later, so those frames are charged as well. The credit is bounded: a peer cannot save up
//! for a flood.

use super::frames::Frame;
use tars_runtime::{
    clock::Clock,
    rate::{Cell, Rate},
};

/// Credit per call: it may be cancelled, re-prioritised, and have its window updated a few times.
const PER_CALL: u64 = 8;
/// Credit per DATA frame of a response: it is followed by a WINDOW_UPDATE for its stream, one for the
/// connection, and now and then a PING that measures the round trip.
const PER_RESPONSE_FRAME: u64 = 4;
/// Credit per DATA frame of a request, and per frame of ours that must be acknowledged.
const PER_OTHER_FRAME: u64 = 1;

/// Maximum credit earned by sending: enough for the control frames of a busy connection's calls at once.
const MAX_BY_REQUESTS: u64 = 8192;
/// Maximum credit earned by receiving: a peer may open its window to 2 GiB and send no update until all of
/// it has arrived, in frames of 16 KiB.
const MAX_BY_RESPONSES: u64 = PER_RESPONSE_FRAME << (31 - 14);

/// What a peer may still send that no call explains.
#[derive(Debug)]
pub(super) struct Allowance {
    earned: u64,
    rate: Rate,
    cell: Cell,
    /// The highest stream that the peer has opened.
    last_stream: u32,
    /// The highest stream that the peer had opened when the last GOAWAY was sent.
    goaway: Option<u32>,
}

impl Allowance {
    /// Creates an allowance in which `rate` applies to frames without credit.
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

    /// Accounts for a frame from the peer; returns whether the peer may continue.
    pub(super) fn received(&mut self, frame: Frame, clock: &Clock) -> bool {
        // HEADERS of an open stream are trailers, or an attack.
        let opens_a_call = frame.is_headers() && frame.stream > self.last_stream;
        self.last_stream = self
            .last_stream
            .max(if opens_a_call { frame.stream } else { 0 });
        if self.goaway.is_some_and(|last| frame.stream > last) {
            return self.spend(clock);
        }
        if opens_a_call {
            self.earn(PER_CALL, MAX_BY_REQUESTS);
        } else if frame.is_body() {
            self.earn(PER_OTHER_FRAME, MAX_BY_REQUESTS);
        } else if !frame.ends_a_body() {
            return self.spend(clock);
        }
        true
    }

    /// Accounts for a frame to the peer.
    pub(super) fn sent(&mut self, frame: Frame) {
        if frame.is_body() {
            self.earn(PER_RESPONSE_FRAME, MAX_BY_RESPONSES);
        } else if frame.needs_ack() {
            self.earn(PER_OTHER_FRAME, MAX_BY_RESPONSES);
        } else if frame.is_goaway() {
            // A graceful shutdown sends two. Streams that are opened in between are served.
            self.goaway = Some(self.last_stream);
        }
    }

    /// Adds `by`, up to `most`; a higher credit that was earned otherwise is retained.
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

    /// Returns how many of these frames in a row are admitted.
    fn passed(allowance: &mut Allowance, frame: Frame, clock: &Clock) -> usize {
        let received = || allowance.received(frame, clock);
        std::iter::repeat_with(received)
            .take(10_000)
            .take_while(|passed| *passed)
            .count()
    }

    #[test]
    fn frames_that_no_call_explains_are_limited_by_burst_and_rate() {
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
    fn a_peer_that_receives_much_may_update_its_windows_as_often() {
        let (mut allowance, clock) = allowance();
        // A whole window is sent before the first update for it arrives.
        for _ in 0..100_000 {
            allowance.sent(frame(DATA, 0, 16_384));
        }
        for _ in 0..200_000 {
            assert!(allowance.received(frame(WINDOW_UPDATE, 0, 4), &clock));
        }
    }

    #[test]
    fn acknowledgements_are_free() {
        let (mut allowance, clock) = allowance();
        for _ in 0..10_000 {
            allowance.sent(frame(PING, 0, 8));
            assert!(allowance.received(frame(PING, 1, 8), &clock));
        }
    }

    #[test]
    fn cancelled_calls_are_explained() {
        let (mut allowance, clock) = allowance();
        for stream in (1..20_000).step_by(2) {
            assert!(allowance.received(open(stream), &clock));
            let reset = Frame::new(RST_STREAM, 0, 4, stream);
            assert!(allowance.received(reset, &clock));
        }
    }

    #[test]
    fn headers_of_an_open_stream_are_charged() {
        let (mut allowance, clock) = allowance();
        assert!(allowance.received(open(5), &clock));
        let trailers = PER_CALL as usize + 100;
        assert_eq!(passed(&mut allowance, open(5), &clock), trailers);
        assert_eq!(passed(&mut allowance, open(3), &clock), 0);
        assert_eq!(allowance.last_stream(), 5);
    }

    #[test]
    fn after_goaway_frames_of_new_streams_are_charged() {
        for kind in [HEADERS, DATA] {
            let (mut allowance, clock) = allowance();
            assert!(allowance.received(open(5), &clock));
            allowance.sent(frame(GOAWAY, 0, 8));
            let mut streams = (7..).step_by(2);
            let passed = streams.position(|stream| {
                let frame = Frame::new(kind, 0, 100, stream);
                !allowance.received(frame, &clock)
            });
            assert_eq!(passed, Some(PER_CALL as usize + 100));
            // Streams in progress continue.
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
    fn credit_cannot_be_saved_up_for_a_flood() {
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
        assert_eq!(spent(&mut allowance, &clock), MAX_BY_REQUESTS + 100);
        clock.advance(Duration::from_secs(3600));
        for _ in 0..1_000_000 {
            allowance.sent(frame(DATA, 0, 1));
        }
        allowance.received(frame(DATA, 0, 1), &clock);
        assert_eq!(spent(&mut allowance, &clock), MAX_BY_RESPONSES + 100);
    }
}
