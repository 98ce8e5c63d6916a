//! The formats in which usage leaves the mesh. Amounts stay the whole numbers that they are in JSON's texts: a
//! floating-point number would round the large ones.

use super::super::{CommandError, listing::required};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::borrow::Cow;

/// How a row is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// RFC 4180, with a head; texts that a spreadsheet would take for a formula begin with an apostrophe.
    Csv,
    /// A JSON object on each line.
    Jsonl,
}

const AMOUNTS: [&str; 3] = ["calls", "training_steps", "solver_microseconds"];

/// A row, in the order of its columns.
struct Row {
    month: String,
    user_id: String,
    username: String,
    amounts: [u64; 3],
    closed: bool,
}

impl Row {
    fn of(row: &Value) -> Result<Self, CommandError> {
        let mut amounts = [0; 3];
        for (amount, name) in amounts.iter_mut().zip(AMOUNTS) {
            let text = required(row, name)?;
            let number = text.parse();
            *amount = number
                .map_err(|_| CommandError::Failed(format!("{name} is not a number: {text:?}")))?;
        }
        Ok(Self {
            month: required(row, "month")?,
            user_id: required(row, "user_id")?,
            username: row["username"].as_str().unwrap_or_default().to_owned(),
            amounts,
            closed: row["closed"] == true,
        })
    }

    fn csv(&self) -> String {
        let texts = [&self.month, &self.user_id, &self.username].map(|text| field(text));
        let [calls, steps, solver] = self.amounts;
        let closed = self.closed;
        format!("{},{calls},{steps},{solver},{closed}", texts.join(","))
    }

    /// An object whose fields are always in the same order.
    fn jsonl(&self) -> String {
        let texts = [&self.month, &self.user_id, &self.username].map(|text| json!(text));
        let [month, user_id, username] = texts;
        let [calls, steps, solver] = self.amounts;
        let closed = self.closed;
        format!(
            "{{\"month\":{month},\"user_id\":{user_id},\"username\":{username},\"calls\":{calls},\
             \"training_steps\":{steps},\"solver_microseconds\":{solver},\"closed\":{closed}}}"
        )
    }
}

/// A text of CSV. A spreadsheet evaluates what begins with one of these characters.
fn field(text: &str) -> String {
    let is_formula =
        text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠']);
    let text = match is_formula {
        true => Cow::from(format!("'{text}")),
        false => Cow::from(text),
    };
    if !is_formula && !text.contains([',', '"', '\r', '\n']) {
        return text.into_owned();
    }
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// The lines of an export, without their ends.
pub(super) fn lines(format: Format, rows: &[Value]) -> Result<Vec<String>, CommandError> {
    let rows = rows.iter().map(Row::of).collect::<Result<Vec<_>, _>>()?;
    Ok(match format {
        Format::Csv => {
            let head = "month,user_id,username,calls,training_steps,solver_microseconds,closed";
            let rows = rows.iter().map(Row::csv);
            std::iter::once(head.to_owned()).chain(rows).collect()
        }
        Format::Jsonl => rows.iter().map(Row::jsonl).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(username: &str, calls: &str) -> Value {
        json!({
            "month": "2026-11", "user_id": "1", "username": username, "calls": calls,
            "training_steps": "2", "solver_microseconds": "3", "closed": true,
        })
    }

    #[test]
    fn every_row_is_a_line_with_exact_numbers() {
        let rows = [row("ada", "18446744073709551615")];
        let csv = lines(Format::Csv, &rows).unwrap();
        assert_eq!(csv[1], "2026-11,1,ada,18446744073709551615,2,3,true");
        assert_eq!(csv[0].split(',').count(), csv[1].split(',').count());
        let jsonl = lines(Format::Jsonl, &rows).unwrap();
        assert_eq!(
            jsonl,
            [
                "{\"month\":\"2026-11\",\"user_id\":\"1\",\"username\":\"ada\",\"calls\":18446744073709551615,\
              \"training_steps\":2,\"solver_microseconds\":3,\"closed\":true}"
            ]
        );
        let parsed: Value = serde_json::from_str(&jsonl[0]).unwrap();
        assert_eq!(parsed["calls"].as_u64(), Some(u64::MAX));
    }

    #[test]
    fn no_text_is_a_formula_or_another_field() {
        for (name, written) in [
            ("=1+1", "\"'=1+1\""),
            ("@SUM(A1)", "\"'@SUM(A1)\""),
            ("+1", "\"'+1\""),
            ("-1", "\"'-1\""),
            ("\t=1", "\"'\t=1\""),
            ("＝1", "\"'＝1\""),
            ("a,b", "\"a,b\""),
            ("a\"b\nc", "\"a\"\"b\nc\""),
            ("a=1", "a=1"),
        ] {
            assert_eq!(field(name), written, "{name:?}");
        }
        let jsonl = lines(Format::Jsonl, &[row("a\"\nb", "1")]).unwrap();
        assert!(!jsonl[0].contains('\n'));
        let parsed: Value = serde_json::from_str(&jsonl[0]).unwrap();
        assert_eq!(parsed["username"], "a\"\nb");
    }

    #[test]
    fn an_answer_without_an_amount_is_not_exported_as_nothing() {
        let mut bad = row("ada", "1");
        bad["calls"] = Value::Null;
        assert!(lines(Format::Csv, &[bad]).is_err());
        assert!(lines(Format::Csv, &[row("ada", "-1")]).is_err());
        assert!(lines(Format::Jsonl, &[row("ada", "1.5")]).is_err());
    }
}
