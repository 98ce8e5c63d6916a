//! Parses PEM files (RFC 7468) as leniently as OpenSSL does: text outside the blocks, blank lines,
//! a byte order mark and any line ending are accepted. A block that is truncated or does not hold
//! what its label says is rejected, with its label and line, and never skipped.

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use zeroize::Zeroizing;

/// One block, decoded.
pub(crate) struct Block {
    pub(crate) label: String,
    pub(crate) der: Zeroizing<Vec<u8>>,
    place: Place,
}

/// Where a block is, for error messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// Counted from 1, as the line is.
    block: usize,
    line: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    #[error("has no END line")]
    Truncated,
    #[error("has the END line of another block")]
    OtherEnd,
    #[error("is empty")]
    Empty,
    #[error("is not base64")]
    NotBase64,
    #[error("is encrypted; only unencrypted keys are supported")]
    Encrypted,
    #[error("is not a certificate")]
    NotACertificate,
    #[error("is not a supported private key")]
    NotAKey,
    #[error("is not a supported revocation list")]
    NotAList,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BlockError {
    #[error("block {block} ({label}, line {line}) {problem}")]
    Bad {
        label: String,
        block: usize,
        line: usize,
        problem: Problem,
    },
    #[error("line {0} looks like a BEGIN or END line, but is malformed")]
    Marker(usize),
    #[error("line {line}: END {label} without its BEGIN")]
    Stray { label: String, line: usize },
}

const BOM: &[u8] = b"\xef\xbb\xbf";

enum Line<'a> {
    Begin(String),
    End(String),
    Broken,
    Other(&'a [u8]),
}

fn line(bytes: &[u8]) -> Line<'_> {
    let bytes = bytes.trim_ascii_end();
    let label = |rest: &[u8]| {
        let name = rest.strip_suffix(b"-----")?;
        Some(String::from_utf8_lossy(name).into_owned())
    };
    if let Some(rest) = bytes.strip_prefix(b"-----BEGIN ") {
        return label(rest).map_or(Line::Broken, Line::Begin);
    }
    if let Some(rest) = bytes.strip_prefix(b"-----END ") {
        return label(rest).map_or(Line::Broken, Line::End);
    }
    Line::Other(bytes)
}

/// A block whose END line has not been read yet.
struct Open {
    label: String,
    place: Place,
    body: Zeroizing<Vec<u8>>,
    encrypted: bool,
}

impl Open {
    fn bad(&self, problem: Problem) -> BlockError {
        bad(&self.label, self.place, problem)
    }

    /// Adds a line between BEGIN and END: base64, or one of the headers of older keys.
    fn take(&mut self, bytes: &[u8]) {
        if bytes.contains(&b':') {
            self.encrypted |= bytes.ends_with(b"ENCRYPTED");
        } else {
            let plain = bytes.iter().filter(|b| !b.is_ascii_whitespace());
            self.body.extend(plain);
        }
    }

    fn close(self, end: &str) -> Result<Block, BlockError> {
        if end != self.label {
            return Err(self.bad(Problem::OtherEnd));
        }
        if self.encrypted || self.label == "ENCRYPTED PRIVATE KEY" {
            return Err(self.bad(Problem::Encrypted));
        }
        if self.body.is_empty() {
            return Err(self.bad(Problem::Empty));
        }
        let der = STANDARD.decode(&*self.body);
        let der = Zeroizing::new(der.map_err(|_| self.bad(Problem::NotBase64))?);
        Ok(Block {
            der,
            label: self.label,
            place: self.place,
        })
    }
}

fn bad(label: &str, place: Place, problem: Problem) -> BlockError {
    BlockError::Bad {
        label: label.to_owned(),
        block: place.block,
        line: place.line,
        problem,
    }
}

/// All blocks of a file, in order.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<Block>, BlockError> {
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    let (mut blocks, mut open): (Vec<Block>, Option<Open>) = (Vec::new(), None);
    for (at, bytes) in bytes.split(|b| *b == b'\n').enumerate() {
        let number = at + 1;
        match (line(bytes), open.take()) {
            (Line::Broken, _) => return Err(BlockError::Marker(number)),
            (Line::Begin(_), Some(cut)) => return Err(cut.bad(Problem::Truncated)),
            (Line::Begin(label), None) => {
                let place = Place {
                    block: blocks.len() + 1,
                    line: number,
                };
                open = Some(Open {
                    label,
                    place,
                    body: Zeroizing::default(),
                    encrypted: false,
                });
            }
            (Line::End(label), None) => {
                return Err(BlockError::Stray {
                    label,
                    line: number,
                });
            }
            (Line::End(label), Some(block)) => blocks.push(block.close(&label)?),
            (Line::Other(bytes), Some(mut block)) => {
                block.take(bytes);
                open = Some(block);
            }
            (Line::Other(_), None) => {}
        }
    }
    match open {
        Some(cut) => Err(cut.bad(Problem::Truncated)),
        None => Ok(blocks),
    }
}

/// Whether a file contains PEM blocks at all; otherwise it may be DER.
pub(crate) fn is_pem(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    let mut lines = bytes.split(|b| *b == b'\n');
    lines.any(|l| !matches!(line(l), Line::Other(_)))
}

impl Block {
    pub(crate) fn is(&self, label: &str) -> bool {
        self.label == label
    }

    pub(crate) fn bad(&self, problem: Problem) -> BlockError {
        bad(&self.label, self.place, problem)
    }

    /// The private key in the block, when its label is that of a key.
    pub(crate) fn private_key(&self) -> Option<PrivateKeyDer<'static>> {
        let der = self.der.to_vec();
        match self.label.as_str() {
            "PRIVATE KEY" => Some(PrivatePkcs8KeyDer::from(der).into()),
            "RSA PRIVATE KEY" => Some(PrivatePkcs1KeyDer::from(der).into()),
            "EC PRIVATE KEY" => Some(PrivateSec1KeyDer::from(der).into()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nQUJD\nREVG\n-----END CERTIFICATE-----\n";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nR0hJ\n-----END PRIVATE KEY-----\n";

    fn read(text: &str) -> Result<Vec<(String, Vec<u8>)>, BlockError> {
        let blocks = parse(text.as_bytes())?;
        Ok(blocks
            .into_iter()
            .map(|b| (b.label, b.der.to_vec()))
            .collect())
    }

    #[test]
    fn text_around_blocks_is_ignored() {
        let want = vec![("CERTIFICATE".to_owned(), b"ABCDEF".to_vec())];
        for (what, text) in [
            ("plain", ONE.to_owned()),
            ("a comment before", format!("# our roots\n{ONE}")),
            ("blank lines", format!("\n\n{ONE}\n\n")),
            (
                "text of openssl",
                format!("subject=CN = x\nissuer=CN = y\n{ONE}"),
            ),
            ("text after", format!("{ONE}the end\n")),
            ("a byte order mark", format!("\u{feff}{ONE}")),
            ("other line ends", ONE.replace('\n', "\r\n")),
            ("no line end at the end", ONE.trim_end().to_owned()),
            ("trailing blanks", ONE.replace('\n', "  \n")),
            ("one long line", ONE.replace("QUJD\nREVG", "QUJDREVG")),
        ] {
            assert_eq!(read(&text).unwrap(), want, "{what}");
            assert!(is_pem(text.as_bytes()), "{what}");
        }
        let mixed = read(&format!("# all in one\n{KEY}\n{ONE}\nand\n{ONE}")).unwrap();
        let labels: Vec<&str> = mixed.iter().map(|b| b.0.as_str()).collect();
        assert_eq!(labels, ["PRIVATE KEY", "CERTIFICATE", "CERTIFICATE"]);
        assert_eq!(read("nothing of the kind\n").unwrap(), []);
        assert!(!is_pem(b"\x30\x82"));
    }

    #[test]
    fn a_malformed_block_is_refused_with_its_label_and_line() {
        for (case, text, expected) in [
            (
                "cut at its end",
                format!("{ONE}{}", &ONE[..40]),
                "block 2 (CERTIFICATE, line 5) has no END line",
            ),
            (
                "cut by the next",
                format!("# x\n{}{ONE}", &ONE[..33]),
                "block 1 (CERTIFICATE, line 2) has no END line",
            ),
            (
                "another end",
                ONE.replace("END CERTIFICATE", "END X509 CRL"),
                "block 1 (CERTIFICATE, line 1) has the END line of another block",
            ),
            (
                "characters outside of base64",
                format!("{KEY}{}", ONE.replace("REVG", "RE*G")),
                "block 2 (CERTIFICATE, line 4) is not base64",
            ),
            (
                "a character missing",
                ONE.replace("REVG", "REV"),
                "is not base64",
            ),
            (
                "nothing inside",
                "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned(),
                "is empty",
            ),
            (
                "no begin",
                ONE[28..].to_owned(),
                "line 3: END CERTIFICATE without its BEGIN",
            ),
            (
                "a begin that is cut",
                ONE.replace("BEGIN CERTIFICATE-----", "BEGIN CERTIFICATE"),
                "line 1 looks like",
            ),
            (
                "an encrypted key",
                KEY.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
                "is encrypted",
            ),
            (
                "an encrypted key of old",
                KEY.replace("R0hJ", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES\n\nR0hJ"),
                "is encrypted",
            ),
        ] {
            let error = read(&text).map(drop).unwrap_err().to_string();
            assert!(error.contains(expected), "{case}: {error}");
        }
    }
}
