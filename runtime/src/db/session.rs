//! What a session of the server means to those who use it.

use sqlx::PgConnection;

/// What a commit and a transaction mean to the services. Settings that a client starts a session with
/// outrank those of its role and of the database. They are verified nevertheless: a connection pooler in
/// between may drop them.
pub(super) const MEANING: [(&str, &str); 3] = [
    ("synchronous_commit", "on"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
];

/// Whether a session is as it was meant to be started.
///
/// # Errors
///
/// [`sqlx::Error::Configuration`] with the first setting that is not.
pub(super) async fn verify(connection: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    const SETTINGS: &str = "SELECT current_setting('search_path'), \
                            current_setting('synchronous_commit'), \
                            current_setting('default_transaction_isolation'), \
                            current_setting('default_transaction_read_only')";
    let found: (String, String, String, String) =
        sqlx::query_as(SETTINGS).fetch_one(connection).await?;
    match difference(schema, [found.0, found.1, found.2, found.3]) {
        None => Ok(()),
        Some(text) => Err(sqlx::Error::Configuration(text.into())),
    }
}

/// What is not as it was meant to be, of the search path and the settings of [`MEANING`].
fn difference(schema: &str, found: [String; 4]) -> Option<String> {
    let expected = [("search_path", schema)].into_iter().chain(MEANING);
    let mut different = expected.zip(found).filter(|((_, e), found)| e != found);
    different.next().map(|((name, expected), found)| {
        format!(
            "a session of the database has {name} = {found}, not {expected}: a connection pooler in \
             between has to pass start-up options on"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_lacks_a_start_up_option_is_refused_by_its_name() {
        let good = ["tars_auth", "on", "read committed", "off"].map(str::to_owned);
        assert_eq!(difference("tars_auth", good.clone()), None);
        for (n, (name, other)) in [
            ("search_path", "public"),
            ("synchronous_commit", "off"),
            ("default_transaction_isolation", "serializable"),
            ("default_transaction_read_only", "on"),
        ]
        .into_iter()
        .enumerate()
        {
            let mut found = good.clone();
            found[n] = other.to_owned();
            let text = difference("tars_auth", found).unwrap();
            assert!(text.contains(&format!("{name} = {other}")), "{text}");
        }
    }
}
