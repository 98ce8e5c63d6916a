//! gzip in steps: so many bytes at a time, and into pieces that are never copied together, so that a message
//! takes no more memory than its limit.

use super::messages::header;
use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use std::mem;

/// The window of DEFLATE as the exponent of two: the largest, which every packer may use.
const WINDOW: u8 = 15;
/// The maximum size of a piece of output.
const PIECE: usize = 64 << 10;

/// How far a piece of work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    More,
    Done,
}

/// Why a message cannot be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is larger than its limit.
    TooLarge,
    /// It is not one whole gzip stream.
    Corrupt,
}

/// A message that is being packed or unpacked.
#[derive(Debug)]
pub(super) struct Work {
    codec: Codec,
    input: Bytes,
    read: usize,
    output: Vec<Bytes>,
    written: usize,
    /// Maximum number of bytes of output.
    max: usize,
}

#[derive(Debug)]
enum Codec {
    Unpack(Decompress),
    Pack(Compress),
}

impl Codec {
    /// Fills the spare room of `output`; returns whether the stream has ended.
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<bool, Fault> {
        let status = match self {
            Self::Unpack(unpack) => unpack
                .decompress_vec(input, output, FlushDecompress::None)
                .map_err(|_| Fault::Corrupt)?,
            Self::Pack(pack) => pack
                .compress_vec(input, output, FlushCompress::Finish)
                .map_err(|_| Fault::Corrupt)?,
        };
        Ok(status == Status::StreamEnd)
    }

    fn read(&self) -> u64 {
        match self {
            Self::Unpack(unpack) => unpack.total_in(),
            Self::Pack(pack) => pack.total_in(),
        }
    }
}

impl Work {
    /// Unpacks a message, to `max` bytes at most.
    pub(super) fn unpack(input: Bytes, max: usize) -> Self {
        Self::new(Codec::Unpack(Decompress::new_gzip(WINDOW)), input, max)
    }

    /// Packs a message. One that does not get smaller by it stays as it is.
    pub(super) fn pack(input: Bytes) -> Self {
        let max = input.len();
        let pack = Compress::new_gzip(Compression::fast(), WINDOW);
        Self::new(Codec::Pack(pack), input, max)
    }

    fn new(codec: Codec, input: Bytes, max: usize) -> Self {
        Self {
            codec,
            input,
            read: 0,
            output: Vec::new(),
            written: 0,
            max,
        }
    }

    /// Works until about `turn` bytes were written.
    pub(super) fn run(&mut self, turn: usize) -> Result<Progress, Fault> {
        let until = self.written + turn;
        while self.written < until {
            match self.piece()? {
                Progress::Done => return Ok(Progress::Done),
                Progress::More => {}
            }
        }
        Ok(Progress::More)
    }

    /// Writes one piece.
    fn piece(&mut self) -> Result<Progress, Fault> {
        // One byte more than there may be shows that there are too many.
        let room = (self.max - self.written).clamp(1, PIECE);
        let mut piece = Vec::with_capacity(room);
        let ended = self.codec.step(&self.input[self.read..], &mut piece)?;
        let read = usize::try_from(self.codec.read()).unwrap_or(usize::MAX);
        let stuck = read == self.read && piece.is_empty() && !ended;
        self.read = read;
        self.written += piece.len();
        if self.written > self.max {
            return self.too_large();
        }
        if !piece.is_empty() {
            self.output.push(piece.into());
        }
        match ended {
            true if self.read < self.input.len() => Err(Fault::Corrupt),
            true => Ok(Progress::Done),
            false if stuck => Err(Fault::Corrupt),
            false => Ok(Progress::More),
        }
    }

    fn too_large(&mut self) -> Result<Progress, Fault> {
        match self.codec {
            Codec::Unpack(_) => Err(Fault::TooLarge),
            Codec::Pack(_) => {
                self.output.clear();
                Ok(Progress::Done)
            }
        }
    }

    /// Takes the message that was made, with its header in front.
    pub(super) fn take_frames(&mut self) -> impl Iterator<Item = Bytes> + use<> {
        let (mut output, packs) = (mem::take(&mut self.output), self.packs());
        if packs && output.is_empty() {
            output.push(mem::take(&mut self.input));
            return frames(0, output);
        }
        frames(u8::from(packs), output)
    }

    fn packs(&self) -> bool {
        matches!(self.codec, Codec::Pack(_))
    }
}

fn frames(flags: u8, output: Vec<Bytes>) -> impl Iterator<Item = Bytes> {
    let length = output.iter().map(Bytes::len).sum();
    std::iter::once(header(flags, length)).chain(output)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use flate2::{read::GzDecoder, write::GzEncoder};
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    use std::io::{Read, Write};

    /// What another implementation of the format would send.
    pub(in super::super) fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut noise = vec![0; length];
        StdRng::seed_from_u64(3).fill(&mut noise[..]);
        noise
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|n| b"status: running\n"[n % 16]).collect()
    }

    /// Works in turns of `turn` bytes, and returns the message without its header, and its flags.
    fn finished(mut work: Work, turn: usize) -> Result<(u8, Vec<u8>), Fault> {
        while work.run(turn)? == Progress::More {}
        let frames: Vec<Bytes> = work.take_frames().collect();
        let length = frames[1..].iter().map(Bytes::len).sum::<usize>();
        assert_eq!(frames[0][1..], u32::try_from(length).unwrap().to_be_bytes());
        Ok((frames[0][0], frames[1..].concat()))
    }

    fn unpacked(packed: &[u8], max: usize) -> Result<Vec<u8>, Fault> {
        let work = Work::unpack(Bytes::copy_from_slice(packed), max);
        finished(work, PIECE).map(|(_, content)| content)
    }

    #[test]
    fn what_was_packed_elsewhere_is_unpacked() {
        for content in [text(0), text(1), text(PIECE), text(300_000), noise(200_000)] {
            let max = content.len();
            assert_eq!(unpacked(&gzip(&content), max), Ok(content));
        }
    }

    #[test]
    fn what_is_packed_here_is_unpacked_elsewhere() {
        for turn in [1, PIECE, 1 << 20] {
            let content = text(1 << 20);
            let work = Work::pack(content.clone().into());
            let (flags, packed) = finished(work, turn).unwrap();
            assert_eq!(flags, 1);
            assert!(packed.len() < content.len() / 50, "{}", packed.len());
            let mut read = Vec::new();
            GzDecoder::new(&packed[..]).read_to_end(&mut read).unwrap();
            assert!(read == content);
        }
    }

    #[test]
    fn what_would_grow_stays_as_it_is() {
        for content in [noise(5000), noise(1 << 20)] {
            let work = Work::pack(content.clone().into());
            assert_eq!(finished(work, PIECE), Ok((0, content)));
        }
    }

    #[test]
    fn a_bomb_ends_at_the_limit_and_takes_no_more_memory_than_that() {
        let limit = 1 << 20;
        let bomb = gzip(&vec![0; 1000 * limit / 10]);
        assert!(bomb.len() < limit / 10);
        let mut work = Work::unpack(bomb.into(), limit);
        let fault = loop {
            match work.run(PIECE) {
                Ok(Progress::More) => {}
                other => break other,
            }
        };
        assert_eq!(fault, Err(Fault::TooLarge));
        let pieces = work.output.drain(..);
        let held: usize = pieces.map(|piece| Vec::from(piece).capacity()).sum();
        assert!(held <= limit, "{held}");
    }

    #[test]
    fn a_limit_is_exact() {
        for length in [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            let packed = gzip(&text(length));
            assert_eq!(unpacked(&packed, length), Ok(text(length)), "{length}");
            let fault = unpacked(&packed, length - 1);
            assert_eq!(fault, Err(Fault::TooLarge), "{length}");
        }
    }

    #[test]
    fn what_is_not_one_whole_gzip_stream_is_corrupt() {
        let good = gzip(&text(5000));
        let wrong_sum = {
            let mut bytes = good.clone();
            let at = bytes.len() - 8;
            bytes[at] ^= 1;
            bytes
        };
        let wrong_length = {
            let mut bytes = good.clone();
            let at = bytes.len() - 1;
            bytes[at] ^= 1;
            bytes
        };
        let two = [good.clone(), good.clone()].concat();
        let trailed = [&good[..], b"x"].concat();
        for bad in [wrong_sum, wrong_length, two, trailed, noise(5000), text(90)] {
            assert_eq!(unpacked(&bad, 1 << 20), Err(Fault::Corrupt));
        }
        for length in 0..good.len() {
            let fault = unpacked(&good[..length], 1 << 20);
            assert_eq!(fault, Err(Fault::Corrupt), "{length}");
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_or_unpacked_within_the_limit() {
        let (good, mut random) = (gzip(&text(3000)), StdRng::seed_from_u64(11));
        for _ in 0..2000 {
            let mut bytes = good.clone();
            for _ in 0..random.random_range(1..6) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            if let Ok(content) = unpacked(&bytes, 4096) {
                assert!(content.len() <= 4096);
            }
        }
    }
}
