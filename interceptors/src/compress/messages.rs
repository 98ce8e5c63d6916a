//! Finds the gRPC messages in a stream of bytes that arrives in pieces of any size.

use bytes::{Buf, Bytes, BytesMut};

/// The length of a message's header: one byte of flags and four of length.
const HEADER: usize = 5;
/// Minimum number of bytes of a message that is packed: below, a few frames are all there is to gain.
const WORTH_PACKING: usize = 4 << 10;

/// A whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) packed: bool,
    flags: u8,
    pub(super) payload: Bytes,
}

impl Message {
    pub(super) fn is_worth_packing(&self) -> bool {
        !self.packed && self.payload.len() >= WORTH_PACKING
    }

    /// Returns the message as it was.
    pub(super) fn into_frames(self) -> [Bytes; 2] {
        [header(self.flags, self.payload.len()), self.payload]
    }
}

/// Returns the header of a message.
pub(super) fn header(flags: u8, length: usize) -> Bytes {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    let mut header = [flags; HEADER];
    header[1..].copy_from_slice(&length.to_be_bytes());
    Bytes::copy_from_slice(&header)
}

/// What has arrived of a stream of messages.
///
/// It is copied out of the pieces it came in: a piece keeps the whole buffer alive that it was received into,
/// and a peer chooses how small its pieces are.
#[derive(Debug, Default)]
pub(super) struct Messages(BytesMut);

impl Messages {
    pub(super) fn add(&mut self, data: &[u8]) {
        self.0.extend_from_slice(data);
    }

    /// Takes the next message, once all of it has arrived.
    pub(super) fn next(&mut self) -> Option<Message> {
        let [flags, length @ ..] = *self.0.first_chunk::<HEADER>()?;
        let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
        if self.0.len() - HEADER < length {
            return None;
        }
        self.0.advance(HEADER);
        Some(Message {
            packed: flags == 1,
            flags,
            payload: self.0.split_to(length).freeze(),
        })
    }

    /// Takes the beginning of a message whose end did not arrive.
    pub(super) fn rest(&mut self) -> Option<Bytes> {
        let rest = self.0.split().freeze();
        (!rest.is_empty()).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(message: &Message) -> Vec<u8> {
        message.clone().into_frames().concat()
    }

    fn message(flags: u8, length: usize) -> Message {
        Message {
            packed: flags == 1,
            flags,
            payload: vec![7; length].into(),
        }
    }

    #[test]
    fn messages_are_found_however_they_are_split() {
        let all = [message(0, 3), message(1, 0), message(2, 300), message(0, 1)];
        let sent: Vec<u8> = all.iter().flat_map(bytes).collect();
        for pieces in 1..=sent.len() {
            let (mut messages, mut found) = (Messages::default(), Vec::new());
            for piece in sent.chunks(pieces) {
                messages.add(piece);
                found.extend(std::iter::from_fn(|| messages.next()));
            }
            assert_eq!(found, all, "{pieces}");
            assert_eq!(messages.rest(), None);
        }
    }

    #[test]
    fn a_message_whose_end_is_missing_is_not_one() {
        let sent = bytes(&message(1, 300));
        for length in 1..sent.len() {
            let mut messages = Messages::default();
            messages.add(&sent[..length]);
            assert_eq!(messages.next(), None);
            assert_eq!(messages.rest().unwrap(), sent[..length]);
            assert_eq!(messages.rest(), None);
        }
    }

    #[test]
    fn only_what_is_large_and_not_yet_packed_is_worth_packing() {
        assert!(message(0, WORTH_PACKING).is_worth_packing());
        for not in [message(0, WORTH_PACKING - 1), message(1, 1 << 20)] {
            assert!(!not.is_worth_packing());
        }
    }
}
