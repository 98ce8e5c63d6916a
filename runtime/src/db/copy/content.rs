//! What a table holds, as a digest.

use crate::db::Value;
use sha2::{Digest, Sha256};
use std::fmt;

/// The number of a table's rows, and the sum of their digests: engines return rows in different orders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Content {
    rows: u64,
    sum: [u64; 4],
}

impl Content {
    /// Adds a row.
    pub(super) fn add(&mut self, row: &[Value<'_>]) {
        let mut digest = Sha256::new();
        for value in row {
            update(&mut digest, value);
        }
        let digest = digest.finalize();
        let (lanes, _) = digest.as_chunks::<8>();
        for (sum, lane) in self.sum.iter_mut().zip(lanes) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*lane));
        }
        self.rows += 1;
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows, {:016x}", self.rows, self.sum[0])
    }
}

/// Each value with its type and length, so that no two rows have the same bytes.
fn update(digest: &mut Sha256, value: &Value<'_>) {
    let mut put = |kind: u8, bytes: Option<&[u8]>| {
        digest.update([kind, u8::from(bytes.is_some())]);
        if let Some(bytes) = bytes {
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(bytes);
        }
    };
    match value {
        Value::Bool(v) => put(0, v.map(|v| [u8::from(v)]).as_ref().map(|b| &b[..])),
        Value::BigInt(v) => put(1, v.map(i64::to_le_bytes).as_ref().map(|b| &b[..])),
        // SQLite has no negative zero.
        Value::Double(v) => {
            let bytes = v.map(|v| (v + 0.0).to_le_bytes());
            put(2, bytes.as_ref().map(|b| &b[..]));
        }
        Value::Text(v) => put(3, v.as_ref().map(|v| v.as_bytes())),
        Value::Bytes(v) => put(4, v.as_deref()),
        Value::Uuid(v) => put(5, v.as_ref().map(|v| &v.as_bytes()[..])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(rows: &[&[Value<'_>]]) -> Content {
        let mut content = Content::default();
        for row in rows {
            content.add(row);
        }
        content
    }

    #[test]
    fn only_the_order_of_rows_makes_no_difference() {
        let (a, b): (Value<'_>, Value<'_>) = ("a".into(), "b".into());
        let both = [a.clone(), b.clone()];
        let swapped = [b.clone(), a.clone()];
        let other = [b.clone(), b.clone()];
        assert_eq!(content(&[&both, &other]), content(&[&other, &both]));
        let joined: [Value<'_>; 2] = ["ab".into(), "".into()];
        let null: [Value<'_>; 2] = ["ab".into(), Value::Text(None)];
        let bytes: [Value<'_>; 2] = [vec![b'a', b'b'].into(), "".into()];
        let rows: [&[Value<'_>]; 6] = [&both, &swapped, &joined, &null, &bytes, &other];
        for (n, one) in rows.iter().enumerate() {
            for two in &rows[n + 1..] {
                assert_ne!(content(&[one]), content(&[two]), "{one:?} {two:?}");
            }
        }
        assert_ne!(content(&[&both]), content(&[&both, &both]));
    }

    #[test]
    fn a_negative_zero_is_zero_and_no_other_number_is() {
        let of = |number: f64| content(&[&[number.into()]]);
        assert_eq!(of(-0.0), of(0.0));
        assert_ne!(of(f64::MIN_POSITIVE), of(0.0));
    }
}
