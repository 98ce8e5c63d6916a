//! The connection to Redis, made again whenever it is lost.
//!
//! One connection carries everything: subscriptions, hints in both directions, and a ping that finds a
//! server that hangs. Every wait on the server is bounded. What was to be sent while there was no
//! connection is sent when there is one: one number for each topic.

use super::{
    PASSWORD_VARIABLE, Server, Shared, State, Topic, Unsent,
    limit::{Limited, Unfinished},
};
use crate::{backoff::Backoff, health::Condition, seeds::Seeds};
use redis::{
    AsyncConnectionConfig, ErrorKind, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo,
    RedisError, Value, aio::MultiplexedConnection,
};
use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    sync::Notify,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

/// The time to connect, TLS, login and subscriptions included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The time for the server to respond to a command.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(500);
/// The interval between two pings.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(2);
/// A connection that lasted for less is a failed attempt, as when the server closes each one at once.
const STABLE: Duration = Duration::from_secs(2);

/// Why there is no connection, for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct LinkError(String);

/// Keeps the bus connected until it is dropped.
pub(super) async fn run(shared: Arc<Shared>, server: Server, condition: Condition, seeds: Seeds) {
    let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY).with_jitter(seeds);
    loop {
        let LinkError(why) = match bounded(Link::open(&shared, &server)).await {
            Ok(link) => {
                condition.record_success();
                let since = Instant::now();
                let error = link.serve().await;
                if since.elapsed() >= STABLE {
                    backoff.reset();
                }
                error
            }
            Err(error) => error,
        };
        shared.state.send_replace(State::Down);
        condition.record_failure(why);
        sleep(backoff.next_delay()).await;
    }
}

async fn bounded(opened: impl Future<Output = Result<Link, LinkError>>) -> Result<Link, LinkError> {
    let late = |_| {
        let seconds = CONNECT_TIMEOUT.as_secs();
        Err(LinkError(format!("no connection within {seconds} s")))
    };
    timeout(CONNECT_TIMEOUT, opened).await.unwrap_or_else(late)
}

/// A connection that is logged in.
struct Link {
    shared: Arc<Shared>,
    server: Server,
    connection: MultiplexedConnection,
    /// Notified when the connection ends.
    lost: Arc<Notify>,
    unfinished: Unfinished,
    /// How many topics are subscribed to, of those that the bus has.
    subscribed: usize,
    _driver: AbortOnDropHandle<()>,
}

impl Link {
    async fn open(shared: &Arc<Shared>, server: &Server) -> Result<Self, LinkError> {
        let unfinished = Unfinished::default();
        let stream = server.connect().await.map_err(LinkError)?;
        let stream = Limited::new(stream, unfinished.clone());
        let lost = Arc::new(Notify::new());
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_push_sender(receiver(shared, server, &lost, &unfinished));
        let login = login(server)?;
        let opened = MultiplexedConnection::new_with_config(&login, stream, config).await;
        let (connection, driver) = opened.map_err(|e| refused(server, &e))?;
        let mut link = Self {
            shared: Arc::clone(shared),
            server: server.clone(),
            connection,
            lost,
            unfinished,
            subscribed: 0,
            _driver: AbortOnDropHandle::new(tokio::spawn(driver)),
        };
        link.subscribe().await?;
        Ok(link)
    }

    /// Serves the connection, and returns why it ended.
    async fn serve(mut self) -> LinkError {
        let Err(error) = self.serve_until_failure().await;
        error
    }

    async fn serve_until_failure(&mut self) -> Result<Infallible, LinkError> {
        let (shared, lost) = (Arc::clone(&self.shared), Arc::clone(&self.lost));
        let mut topics = shared.topics.subscribe();
        let mut ping = interval(PING_INTERVAL);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.send_hints().await?;
        loop {
            self.subscribe().await?;
            tokio::select! {
                () = lost.notified() => return Err(closed(&self.server)),
                () = shared.enqueued.notified() => self.send_hints().await?,
                // `shared` has the sender.
                _ = topics.changed() => {}
                _ = ping.tick() => self.run(&redis::cmd("PING")).await?,
            }
        }
    }

    /// Subscribes to what has a follower since the last time, and lets every follower catch up: what
    /// was published before is not repeated.
    async fn subscribe(&mut self) -> Result<(), LinkError> {
        let topics = self.shared.topics.borrow().clone();
        let is_up = matches!(*self.shared.state.borrow(), State::Up(_));
        if is_up && topics.len() == self.subscribed {
            return Ok(());
        }
        for topic in topics.iter().skip(self.subscribed) {
            let mut subscribe = redis::cmd("SUBSCRIBE");
            subscribe.arg(self.server.channel(topic));
            self.run(&subscribe).await?;
        }
        self.subscribed = topics.len();
        self.shared.connected();
        Ok(())
    }

    /// Sends the newest number of each topic. What cannot be sent is put back.
    async fn send_hints(&mut self) -> Result<(), LinkError> {
        let shared = Arc::clone(&self.shared);
        let unsent = Unsent::take(&shared);
        if unsent.hints.is_empty() {
            return Ok(());
        }
        self.send(&unsent.hints).await?;
        unsent.sent();
        Ok(())
    }

    async fn send(&mut self, hints: &BTreeMap<Topic, u64>) -> Result<(), LinkError> {
        let mut pipe = redis::pipe();
        for (topic, sequence) in hints {
            pipe.cmd("PUBLISH")
                .arg(self.server.channel(topic))
                .arg(*sequence)
                .ignore();
        }
        let sent = pipe.query_async::<()>(&mut self.connection).await;
        self.unfinished.reset();
        sent.map_err(|e| failed(&self.server, &e))
    }

    async fn run(&mut self, command: &redis::Cmd) -> Result<(), LinkError> {
        let done = command.query_async::<Value>(&mut self.connection).await;
        self.unfinished.reset();
        done.map(drop).map_err(|e| failed(&self.server, &e))
    }
}

fn closed(server: &Server) -> LinkError {
    LinkError(format!("{server}: the connection was closed"))
}

fn failed(server: &Server, error: &RedisError) -> LinkError {
    LinkError(match error.is_timeout() {
        true => format!(
            "{server}: no response within {} ms",
            RESPONSE_TIMEOUT.as_millis()
        ),
        false => format!("{server}: {error}"),
    })
}

pub(crate) fn refused(server: &Server, error: &RedisError) -> LinkError {
    LinkError(match (error.kind(), error.code()) {
        (_, Some("NOAUTH")) => format!(
            "{server} refused the login: a password is needed, in redis.password_file or {PASSWORD_VARIABLE}"
        ),
        (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS")) => {
            format!("{server} refused the login: {error}")
        }
        (ErrorKind::RESP3NotSupported, _) => format!("{server}: Redis 6 or newer is needed"),
        _ => return failed(server, error),
    })
}

pub(crate) fn login(server: &Server) -> Result<RedisConnectionInfo, LinkError> {
    let mut login = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_skip_set_lib_name();
    if let Some(user) = server.user() {
        login = login.set_username(user);
    }
    if let Some(password) = server.password().map_err(LinkError)? {
        login = login.set_password(password.as_str());
    }
    Ok(login)
}

/// Delivers what the server pushes.
fn receiver(
    shared: &Arc<Shared>,
    server: &Server,
    lost: &Arc<Notify>,
    unfinished: &Unfinished,
) -> impl Fn(PushInfo) -> Result<(), Infallible> + Send + Sync + 'static {
    let (shared, server, lost) = (Arc::clone(shared), server.clone(), Arc::clone(lost));
    let unfinished = unfinished.clone();
    move |push| {
        unfinished.reset();
        match push.kind {
            PushKind::Disconnection => lost.notify_one(),
            PushKind::Message => match read(&server, &push.data) {
                Some((topic, sequence)) => shared.deliver(topic, sequence),
                None => tracing::debug!("a message on a channel of the bus is not a hint"),
            },
            _ => {}
        }
        Ok(())
    }
}

/// The topic and the number of a message: its channel and its payload.
fn read<'a>(server: &Server, message: &'a [Value]) -> Option<(&'a str, u64)> {
    let [Value::BulkString(channel), Value::BulkString(payload)] = message else {
        return None;
    };
    let topic = server.topic(std::str::from_utf8(channel).ok()?)?;
    let sequence = std::str::from_utf8(payload).ok()?.parse().ok()?;
    Some((topic, sequence))
}
