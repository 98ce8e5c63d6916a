//! A smoke run of every fuzz target: good input, mutated, from a fixed seed. `TARS_FUZZ_RUNS` makes
//! it longer; a failure prints the input in hexadecimal.

#![allow(clippy::unwrap_used)]

use std::panic::catch_unwind;
use tars_tests::fuzz::{TARGETS, Target};

/// xorshift64*: the same inputs on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n.max(1)).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        // Bytes that mean something to a parser come more often.
        const ODD: [u8; 16] = [
            0, 1, 0x30, 0x31, 0x80, 0x81, 0x82, 0x84, 0x7f, 0xff, b'/', b'.', b'*', b'"', b'\n', 6,
        ];
        match self.below(2) {
            0 => ODD[self.below(ODD.len())],
            _ => self.next().to_le_bytes()[0],
        }
    }

    fn mutate(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.below(4) {
            let at = self.below(input.len());
            match self.below(7) {
                0 => input.truncate(at),
                1 => input.insert(at.min(input.len()), self.byte()),
                2 if !input.is_empty() => drop(input.remove(at)),
                3 if !input.is_empty() => {
                    let bit = self.below(8);
                    input[at] ^= 1 << bit;
                }
                4 if !input.is_empty() => {
                    let end = (at + self.below(16)).min(input.len());
                    let part = input[at..end].to_vec();
                    let to = self.below(input.len());
                    input.splice(to..to, part);
                }
                5 if !other.is_empty() => {
                    let from = self.below(other.len());
                    let end = (from + self.below(64)).min(other.len());
                    input.splice(at..at, other[from..end].iter().copied());
                }
                _ if !input.is_empty() => input[at] = self.byte(),
                _ => input.push(self.byte()),
            }
        }
    }
}

fn runs() -> usize {
    let asked = std::env::var("TARS_FUZZ_RUNS").ok();
    asked.map_or(2_000, |n| n.parse().expect("TARS_FUZZ_RUNS is a number"))
}

fn smoke(target: &Target) {
    let seeds = (target.seeds)();
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut corpus = seeds.clone();
    for seed in &seeds {
        (target.run)(seed);
    }
    (target.run)(&[]);
    for round in 0..runs() {
        let mut input = corpus[random.below(corpus.len())].clone();
        let other = seeds[random.below(seeds.len())].clone();
        random.mutate(&mut input, &other);
        if catch_unwind(|| (target.run)(&input)).is_err() {
            let hex: String = input.iter().map(|b| format!("{b:02x}")).collect();
            panic!("{} in round {round}: {hex}", target.name);
        }
        // Some mutants are mutated again.
        if round % 16 == 0 && corpus.len() < 256 && input.len() < 1 << 16 {
            corpus.push(input);
        }
    }
}

#[test]
fn every_parser_of_outside_bytes_survives_mutated_input() {
    for target in &TARGETS {
        smoke(target);
    }
}
