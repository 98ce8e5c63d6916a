//! Streams that outlive a connection and a restart of the mesh: followed to their end, from one
//! connection to the next.

use super::{CommandError, session::Session};
use crate::rest::{Rest, RestError};
use http::StatusCode;
use serde_json::Value;
use std::time::Duration;
use tars_proto::reason;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

/// How long a mesh may be away before a command gives up.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// Codes of a stream's error after which the same stream can go on over another connection:
/// cancelled, unknown, deadline exceeded, unavailable, unauthenticated.
const PASSING: [i64; 5] = [1, 2, 4, 14, 16];

/// Where numbered items come from, one connection at a time.
pub(super) trait Source {
    /// Reads the items after a number until `each` wants no more or the connection ends.
    async fn read(
        &mut self,
        after: u64,
        each: &mut dyn FnMut(&Value) -> bool,
    ) -> Result<(), RestError>;

    /// Makes the next connection possible: the same mesh answers, and the credential lasts.
    async fn renew(&mut self) -> Result<(), CommandError>;
}

/// A stream of the gateway, read by a session.
struct Connections<'a> {
    session: &'a mut Session,
    path: &'a str,
}

impl Source for Connections<'_> {
    async fn read(
        &mut self,
        after: u64,
        each: &mut dyn FnMut(&Value) -> bool,
    ) -> Result<(), RestError> {
        self.session
            .rest()
            .follow(&after_item(self.path, after), each)
            .await
    }

    async fn renew(&mut self) -> Result<(), CommandError> {
        self.session.find_again();
        self.session.freshen(None).await
    }
}

/// A stream of the gateway, read with one credential: for a mesh that this process serves.
struct OneCredential<'a> {
    rest: &'a Rest,
    path: &'a str,
}

impl Source for OneCredential<'_> {
    async fn read(
        &mut self,
        after: u64,
        each: &mut dyn FnMut(&Value) -> bool,
    ) -> Result<(), RestError> {
        self.rest.follow(&after_item(self.path, after), each).await
    }

    async fn renew(&mut self) -> Result<(), CommandError> {
        Ok(())
    }
}

/// The path of a stream's items after a number.
fn after_item(path: &str, number: u64) -> String {
    let separator = if path.contains('?') { '&' } else { '?' };
    format!("{path}{separator}after_sequence={number}")
}

/// Follows a stream of numbered items until `each` returns that it has seen enough. A stream that ends
/// before, because a certificate or a token is renewed or the mesh restarts, goes on after the last
/// item; a mesh that stays away is an error that names `goes_on`, the command to continue with. So is
/// SIGINT, which ends the following and nothing else.
pub(super) async fn follow(
    session: &mut Session,
    path: &str,
    goes_on: &str,
    each: impl FnMut(&Value) -> bool,
) -> Result<(), CommandError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CommandError::Runtime)?;
    let mut source = Connections { session, path };
    tokio::select! {
        followed = follow_source(&mut source, goes_on, each) => followed,
        _ = interrupt.recv() => Err(CommandError::Unfollowed { goes_on: goes_on.to_owned() }),
    }
}

/// Follows a stream of numbered items in the same way, with one credential.
pub(super) async fn follow_with(
    rest: &Rest,
    path: &str,
    goes_on: &str,
    each: impl FnMut(&Value) -> bool,
) -> Result<(), CommandError> {
    follow_source(&mut OneCredential { rest, path }, goes_on, each).await
}

async fn follow_source(
    source: &mut impl Source,
    goes_on: &str,
    mut each: impl FnMut(&Value) -> bool,
) -> Result<(), CommandError> {
    let (mut last, mut outage) = (0, Outage::default());
    loop {
        let (before, mut enough) = (last, false);
        let mut take = |item: &Value| {
            last = sequence(item).unwrap_or(last);
            enough = !each(item);
            !enough
        };
        let ended = source.read(before, &mut take).await;
        if enough {
            return Ok(());
        }
        let progress = last > before;
        match ended {
            // The mesh was restarted and numbers the items anew.
            Err(e) if before > 0 && e.reason() == Some(reason::TRIMMED) => last = 0,
            Err(e) if !is_passing(&e, progress) => return Err(e.into()),
            _ if progress => outage = Outage::default(),
            Err(e) => outage.wait(&e.to_string(), goes_on).await?,
            Ok(()) => outage.wait("the stream ended early", goes_on).await?,
        }
        while let Err(e) = source.renew().await {
            match &e {
                CommandError::Rest(why) if is_passing(why, false) => {
                    outage.wait(&why.to_string(), goes_on).await?;
                }
                _ => return Err(e),
            }
        }
    }
}

/// Whether another connection may succeed after this error of one that did or did not have items.
fn is_passing(error: &RestError, progress: bool) -> bool {
    let unavailable = [
        StatusCode::BAD_GATEWAY,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT,
    ];
    match error {
        RestError::Unreachable { .. }
        | RestError::Silent { .. }
        | RestError::Http(_)
        | RestError::Busy { .. } => true,
        RestError::Refused { status, .. } => unavailable.contains(status),
        RestError::Stream { code, .. } => progress || PASSING.contains(code),
        _ => false,
    }
}

/// The time since the mesh was last of use, and the pauses between attempts.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
    pause: Duration,
}

impl Outage {
    /// Waits before the next attempt.
    ///
    /// # Errors
    ///
    /// The mesh has been away for too long.
    async fn wait(&mut self, why: &str, goes_on: &str) -> Result<(), CommandError> {
        let since = *self.since.get_or_insert_with(|| {
            let seconds = PATIENCE.as_secs();
            note!("the connection was lost ({why}); trying again for {seconds} s");
            Instant::now()
        });
        if since.elapsed() >= PATIENCE {
            return Err(CommandError::Away {
                why: why.to_owned(),
                goes_on: goes_on.to_owned(),
            });
        }
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        tokio::time::sleep(self.pause).await;
        Ok(())
    }
}

fn sequence(item: &Value) -> Option<u64> {
    item["sequence"].as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::VecDeque;

    /// Each connection has items and an end; the numbers that were asked for are recorded.
    #[derive(Default)]
    struct Script {
        connections: VecDeque<(Vec<u64>, Result<(), RestError>)>,
        asked: Vec<u64>,
        renewed: u32,
    }

    impl Source for Script {
        async fn read(
            &mut self,
            after: u64,
            each: &mut dyn FnMut(&Value) -> bool,
        ) -> Result<(), RestError> {
            self.asked.push(after);
            let Some((items, end)) = self.connections.pop_front() else {
                return Err(RestError::Http("cut".to_owned()));
            };
            let wanted = |n: u64| each(&json!({ "sequence": n.to_string() }));
            match items.into_iter().all(wanted) {
                true => end,
                false => Ok(()),
            }
        }

        async fn renew(&mut self) -> Result<(), CommandError> {
            self.renewed += 1;
            Ok(())
        }
    }

    fn script(connections: Vec<(Vec<u64>, Result<(), RestError>)>) -> Script {
        Script {
            connections: connections.into(),
            ..Script::default()
        }
    }

    fn cut() -> Result<(), RestError> {
        Err(RestError::Http("cut".to_owned()))
    }

    fn stream(code: i64) -> Result<(), RestError> {
        Err(RestError::Stream {
            path: "/x".to_owned(),
            message: "it ends".to_owned(),
            code,
        })
    }

    fn refused(reason: &str) -> Result<(), RestError> {
        Err(RestError::Refused {
            method: http::Method::GET,
            path: "/x".to_owned(),
            status: StatusCode::BAD_REQUEST,
            message: "no".to_owned(),
            body: json!({ "details": [{ "domain": "tars", "reason": reason }] }),
        })
    }

    async fn followed(source: &mut Script, until: u64) -> (Vec<u64>, Result<(), CommandError>) {
        let mut seen = Vec::new();
        let ended = follow_source(source, "`tars go on`", |item| {
            let number = sequence(item).unwrap();
            seen.push(number);
            number < until
        });
        let ended = ended.await;
        (seen, ended)
    }

    #[test]
    fn the_number_of_the_last_item_is_added_to_a_path_or_its_query() {
        assert_eq!(after_item("/x", 0), "/x?after_sequence=0");
        assert_eq!(after_item("/x?a=1", 7), "/x?a=1&after_sequence=7");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_goes_on_after_the_last_item_over_any_passing_end() {
        let mut source = script(vec![
            (vec![1, 2], cut()),
            (vec![], cut()),
            (vec![], stream(14)),
            (vec![3], stream(9)),
            (vec![], Ok(())),
            (vec![4], Ok(())),
        ]);
        let (seen, ended) = followed(&mut source, 4).await;
        ended.unwrap();
        assert_eq!(seen, [1, 2, 3, 4]);
        assert_eq!(source.asked, [0, 2, 2, 2, 3, 3]);
        assert_eq!(source.renewed, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_restarted_mesh_that_numbers_anew_is_followed_from_its_first_item() {
        let mut source = script(vec![
            (vec![3], cut()),
            (vec![], refused("TRIMMED")),
            (vec![1, 4], Ok(())),
        ]);
        let (seen, ended) = followed(&mut source, 4).await;
        ended.unwrap();
        assert_eq!((seen, source.asked), (vec![3, 1, 4], vec![0, 3, 0]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_mesh_that_stays_away_is_given_up_with_the_command_that_goes_on() {
        let begun = Instant::now();
        let mut source = script(vec![(vec![1], cut())]);
        let (_, ended) = followed(&mut source, 9).await;
        let error = ended.unwrap_err();
        assert_eq!(error.exit_code(), 69);
        assert!(error.to_string().contains("`tars go on`"), "{error}");
        let waited = begun.elapsed();
        assert!(waited >= PATIENCE && waited <= PATIENCE + 2 * LONGEST_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_permanent_failure_ends_the_stream_at_once() {
        for end in [stream(9), refused("TRIMMED"), refused("NOT_FOUND")] {
            let mut source = script(vec![(vec![], end)]);
            let (_, ended) = followed(&mut source, 9).await;
            assert_ne!(ended.unwrap_err().exit_code(), 69);
            assert_eq!(source.asked, [0]);
        }
    }
}
