//! Streams that outlive a connection: followed to their end, from one connection to the next.

use super::{CommandError, session::Session};
use crate::rest::RestError;
use serde_json::Value;

/// Follows a stream of numbered items. `each` returns whether it wants the next one. A stream that the
/// mesh ends early, because a certificate or a token is renewed, goes on after the last item.
pub(super) async fn follow(
    session: &mut Session,
    path: &str,
    mut each: impl FnMut(&Value) -> bool,
) -> Result<(), CommandError> {
    let mut last = 0;
    loop {
        let before = last;
        let (rest, from) = (session.rest(), format!("{path}?after_sequence={before}"));
        let followed = rest.follow(&from, |item| {
            last = sequence(item).unwrap_or(last);
            each(item)
        });
        match followed.await {
            Ok(()) => return Ok(()),
            // One that ends without an item would do so again.
            Err(RestError::Stream { .. }) if last > before => session.freshen(None).await?,
            Err(e) => return Err(e.into()),
        }
    }
}

fn sequence(item: &Value) -> Option<u64> {
    item["sequence"].as_str()?.parse().ok()
}
