//! Answers that clients have not read yet.
//!
//! A service is done with a call once the gateway has its answer: its place and the caller's share are free again.
//! From then on the answer is the gateway's, for as long as its client takes to read it. So its bytes are counted, in
//! all and by address, and nobody is answered whose share is full of what they do not read; and an answer has to
//! be read within a time, so that the pace that is asked for grows with its size.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tars_proto::{fault, reason, unavailable::Unavailable};
use tars_runtime::{config::Gateway as Settings, network::bucket, shares::shrunk};
use tokio::time::Instant;
use tonic::Status;

/// How many bytes of an answer are given to the connection at once.
const PART: usize = 16 << 10;
/// When somebody who was refused may come back: answers are read all the time.
const SOON: Duration = Duration::from_secs(1);

/// Why an answer cannot be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// There are too many of all clients.
    All,
    /// There are too many of this client's address.
    Share,
}

impl From<Full> for Status {
    fn from(full: Full) -> Self {
        match full {
            Full::All => fault::unavailable(
                Unavailable::UnreadAnswers,
                "too many answers have not been read by their clients",
                SOON,
            ),
            Full::Share => fault::spent(
                reason::UNREAD_ANSWERS,
                "address",
                "too many answers have not been read by this address",
                SOON,
            ),
        }
    }
}

/// The answers that have not been read. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Unsent(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    share: usize,
    /// How long an answer may take.
    limit: Duration,
    bytes: Mutex<Count>,
}

#[derive(Debug, Default)]
struct Count {
    all: usize,
    by_address: HashMap<u64, usize>,
}

impl Unsent {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self(Arc::new(Inner {
            most: settings.max_unsent_bytes,
            share: settings.max_unsent_bytes_by_address,
            limit: Duration::from_secs(settings.answer_seconds),
            bytes: Mutex::default(),
        }))
    }

    /// Refuses a call whose answer could not be held, before anything is done for it.
    pub(crate) fn ensure_room(&self, client: IpAddr) -> Result<(), Full> {
        self.0.fits(&self.0.bytes.lock(), bucket(client), 1)
    }

    /// Holds an answer of a call that has changed nothing, where there is room for it.
    pub(crate) fn try_hold(&self, client: IpAddr, answer: Bytes) -> Result<UnsentBody, Full> {
        let (key, mut held) = (bucket(client), self.0.bytes.lock());
        self.0.fits(&held, key, answer.len())?;
        Ok(self.add(&mut held, key, answer))
    }

    /// Holds an answer in any case: its call has changed something, which its caller should hear of.
    pub(crate) fn hold(&self, client: IpAddr, answer: Bytes) -> UnsentBody {
        self.add(&mut self.0.bytes.lock(), bucket(client), answer)
    }

    fn add(&self, held: &mut Count, key: u64, answer: Bytes) -> UnsentBody {
        held.all += answer.len();
        *held.by_address.entry(key).or_default() += answer.len();
        UnsentBody {
            until: Instant::now() + self.0.limit,
            held: Some(Held {
                of: self.clone(),
                key,
                bytes: answer.len(),
            }),
            left: answer,
        }
    }
}

impl Inner {
    /// Whether so many bytes more may be held. One answer may be longer than a share, so that whoever reads theirs is
    /// answered whatever its length.
    fn fits(&self, held: &Count, key: u64, bytes: usize) -> Result<(), Full> {
        let own = held.by_address.get(&key).copied().unwrap_or(0);
        let share = shrunk(self.most, self.share, self.most.saturating_sub(held.all));
        let is_over = |held: usize, most: usize| held > 0 && held.saturating_add(bytes) > most;
        if is_over(own, share) {
            return Err(Full::Share);
        }
        if is_over(held.all, self.most) {
            return Err(Full::All);
        }
        Ok(())
    }
}

/// The bytes of an answer, counted until this is dropped.
#[derive(Debug)]
struct Held {
    of: Unsent,
    key: u64,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.of.0.bytes.lock();
        held.all -= self.bytes;
        if let Some(own) = held.by_address.get_mut(&self.key) {
            *own -= self.bytes;
            if *own == 0 {
                held.by_address.remove(&self.key);
            }
        }
    }
}

/// An answer, part by part: a connection takes the next one when most of those before it are sent.
#[derive(Debug)]
pub(crate) struct UnsentBody {
    left: Bytes,
    until: Instant,
    held: Option<Held>,
}

impl Body for UnsentBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        // A connection that makes no progress at all ends otherwise.
        if Instant::now() >= self.until {
            let late = io::Error::new(io::ErrorKind::TimedOut, "the answer was not read in time");
            return Poll::Ready(Some(Err(late)));
        }
        let length = self.left.len().min(PART);
        let part = self.left.split_to(length);
        if self.left.is_empty() {
            self.held = None;
        }
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::net::Ipv4Addr;
    use tonic::Code;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn other(n: u8) -> IpAddr {
        [192, 0, 2, n].into()
    }

    fn unsent(most: usize, share: usize) -> Unsent {
        Unsent::new(&Settings {
            max_unsent_bytes: most,
            max_unsent_bytes_by_address: share,
            answer_seconds: 60,
            ..Settings::default()
        })
    }

    fn answer(bytes: usize) -> Bytes {
        Bytes::from(vec![b'x'; bytes])
    }

    fn all(unsent: &Unsent) -> usize {
        unsent.0.bytes.lock().all
    }

    #[tokio::test]
    async fn slow_readers_of_one_address_hold_its_share_and_others_are_answered() {
        let unsent = unsent(1000 << 10, 100 << 10);
        let mut slow = Vec::new();
        let refused = loop {
            match unsent.try_hold(ONE, answer(40 << 10)) {
                Ok(body) => slow.push(body),
                Err(full) => break full,
            }
        };
        assert_eq!((refused, slow.len()), (Full::Share, 2));
        unsent.ensure_room(ONE).unwrap();
        let last = unsent.hold(ONE, answer(40 << 10));
        assert_eq!(unsent.ensure_room(ONE), Err(Full::Share));
        let read = unsent.try_hold(other(2), answer(40 << 10)).unwrap();
        assert_eq!(read.collect().await.unwrap().to_bytes(), answer(40 << 10));
        drop((slow, last));
        unsent.ensure_room(ONE).unwrap();
        assert_eq!(all(&unsent), 0);
        assert!(unsent.0.bytes.lock().by_address.is_empty());
    }

    #[tokio::test]
    async fn many_addresses_leave_room_for_one_more_and_the_whole_is_bounded() {
        let unsent = unsent(1000 << 10, 500 << 10);
        let mut slow = Vec::new();
        for n in 1..=100 {
            while let Ok(body) = unsent.try_hold(other(n), answer(10 << 10)) {
                slow.push(body);
            }
        }
        assert!(all(&unsent) <= 1000 << 10);
        let addresses = unsent.0.bytes.lock().by_address.len();
        assert!(addresses > 3, "{addresses} took all");
        let refused = unsent.try_hold(other(101), answer(10 << 10)).unwrap_err();
        assert_eq!(refused, Full::All);
    }

    #[tokio::test]
    async fn an_answer_longer_than_a_share_is_held_alone() {
        let unsent = unsent(100, 10);
        let long = unsent.try_hold(ONE, answer(500)).unwrap();
        assert_eq!(unsent.ensure_room(ONE), Err(Full::Share));
        assert_eq!(unsent.ensure_room(other(2)), Err(Full::All));
        drop(long);
        unsent.ensure_room(other(2)).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_given_in_parts_and_has_to_be_read_in_time() {
        let unsent = unsent(1000 << 10, 1000 << 10);
        let mut body = unsent.try_hold(ONE, answer(2 * PART + 1)).unwrap();
        let size = u64::try_from(2 * PART + 1).unwrap();
        assert_eq!(body.size_hint().exact(), Some(size));
        let mut lengths = Vec::new();
        for held in [2 * PART + 1, 2 * PART + 1, 0] {
            let part = body.frame().await.unwrap().unwrap().into_data().unwrap();
            lengths.push(part.len());
            assert_eq!(all(&unsent), held);
        }
        assert_eq!(lengths, [PART, PART, 1]);
        assert!(body.is_end_stream() && body.frame().await.is_none());

        let mut slow = unsent.try_hold(ONE, answer(2 * PART)).unwrap();
        slow.frame().await.unwrap().unwrap();
        tokio::time::advance(Duration::from_secs(60)).await;
        let late = slow.frame().await.unwrap().unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_refusal_says_whose_answers_are_not_read() {
        for (full, code) in [
            (Full::All, Code::Unavailable),
            (Full::Share, Code::ResourceExhausted),
        ] {
            let status = Status::from(full);
            assert_eq!(status.code(), code);
            assert_eq!(fault::reason(&status).unwrap(), reason::UNREAD_ANSWERS);
            assert_eq!(fault::retry_after(&status), Some(SOON));
        }
    }
}
