//! A checksum that finds damage to stored bytes. It is no protection from somebody who computes it anew.

/// A sum over parts of bytes, of which the lengths count too.
#[derive(Debug, Default)]
pub(crate) struct Checksum(u64);

/// An odd number whose bits are spread evenly (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
/// Generators", 2014).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Checksum {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.mix(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.mix(u64::from_le_bytes(last));
    }

    /// Every step is a bijection of the state for a fixed word and of the word for a fixed state, so that a
    /// single changed word always changes the sum.
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(SPREAD);
        self.0 ^= self.0 >> 32;
    }

    pub(crate) fn finish(&self) -> u64 {
        self.0
    }
}
