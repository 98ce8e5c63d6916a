//! Lists of the mesh: all pages of one, and the words and tables that people read.

use super::output;
use crate::rest::{Rest, RestError};
use serde_json::Value;

/// The largest page that the services serve.
const LARGEST_PAGE: usize = 500;

/// All rows of a list.
pub(super) async fn all(rest: &Rest, path: &str, field: &str) -> Result<Vec<Value>, RestError> {
    first(rest, path, field, usize::MAX).await
}

/// The first rows of a list, `limit` at most.
pub(super) async fn first(
    rest: &Rest,
    path: &str,
    field: &str,
    limit: usize,
) -> Result<Vec<Value>, RestError> {
    let (mut rows, mut token) = (Vec::new(), String::new());
    let sign = if path.contains('?') { '&' } else { '?' };
    while rows.len() < limit {
        let size = (limit - rows.len()).min(LARGEST_PAGE);
        let page = format!("{path}{sign}page_size={size}&page_token={token}");
        let page = rest.get(&page).await?;
        rows.extend(page[field].as_array().cloned().unwrap_or_default());
        token = text(&page["next_page_token"]);
        if token.is_empty() {
            break;
        }
    }
    Ok(rows)
}

/// Prints rows as a table.
pub(super) fn table(head: &[&str], rows: &[Value], row: impl Fn(&Value) -> Vec<String>) {
    output::table(head, &rows.iter().map(row).collect::<Vec<_>>());
}

/// A text; empty when it is absent.
pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A number; those of 64 bits are texts in JSON.
pub(super) fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_of_64_bits_are_read_from_texts() {
        assert_eq!(number(&json!("18")), Some(18.0));
        assert_eq!(number(&json!(1.5)), Some(1.5));
        assert_eq!(number(&json!("x")), None);
    }
}
