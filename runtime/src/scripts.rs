//! Scripts that run inside a Redis server: what replicas decide together, each in one step and on the
//! server's clock.
//!
//! A connection belongs to one user of it, who bounds every wait and decides what a failure means: nothing
//! is repeated here. A script whose response is late may have run.

use crate::bus::{
    Server,
    limit::{Limited, Unfinished},
    link::{login, refused},
};
use redis::{
    AsyncConnectionConfig, PushInfo, PushKind, RedisError, Value, aio::MultiplexedConnection,
};
use std::{convert::Infallible, fmt, sync::Arc};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// Why a script has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// The connection is of no further use. The script may have run.
    #[error("{0}")]
    Lost(String),
    /// The connection is of no further use, and the script has not run: the server does not know it, or
    /// takes no writes, or is one of a cluster.
    #[error("{0}")]
    NotRun(String),
    /// The script met a key that holds something else. The connection is as good as before.
    #[error("{0}")]
    WrongType(String),
    /// The server refused to run the script, or the script failed.
    #[error("{0}")]
    Failed(String),
}

/// A connection on which scripts are loaded. Clones share it, and it ends with the last of them.
#[derive(Clone)]
pub struct Scripts(Arc<Inner>);

struct Inner {
    server: Server,
    connection: MultiplexedConnection,
    /// The digests by which the server knows the scripts, in the order of their sources.
    digests: Vec<String>,
    lost: CancellationToken,
    unfinished: Unfinished,
    _driver: AbortOnDropHandle<()>,
}

impl fmt::Debug for Scripts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scripts").field(&self.0.server).finish()
    }
}

impl Scripts {
    /// Connects to a server and loads the scripts. The caller bounds the time.
    ///
    /// # Errors
    ///
    /// Why there is no connection, for the operator.
    pub async fn open(server: &Server, sources: &[&str]) -> Result<Self, ScriptError> {
        let (unfinished, lost) = (Unfinished::default(), CancellationToken::new());
        let why = |e: &dyn fmt::Display| ScriptError::Lost(e.to_string());
        let stream = server.connect().await.map_err(ScriptError::Lost)?;
        let stream = Limited::new(stream, unfinished.clone());
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_push_sender(receiver(lost.clone(), unfinished.clone()));
        let login = login(server).map_err(|e| why(&e))?;
        let opened = MultiplexedConnection::new_with_config(&login, stream, config).await;
        let (connection, driver) = opened.map_err(|e| why(&refused(server, &e)))?;
        let driver = AbortOnDropHandle::new(tokio::spawn(driver));
        let mut digests = Vec::new();
        for source in sources {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(*source);
            let digest = load.query_async(&mut connection.clone()).await;
            unfinished.reset();
            digests.push(digest.map_err(|e| failed(server, &e))?);
        }
        Ok(Self(Arc::new(Inner {
            server: server.clone(),
            connection,
            digests,
            lost,
            unfinished,
            _driver: driver,
        })))
    }

    /// Runs a script, named by its position among the sources, and returns the integers of its reply.
    ///
    /// # Errors
    ///
    /// [`ScriptError::NotRun`] when the server has forgotten the script.
    pub async fn run(
        &self,
        script: usize,
        keys: &[&str],
        arguments: &[f64],
    ) -> Result<Vec<i64>, ScriptError> {
        let inner = &*self.0;
        let mut command = redis::cmd("EVALSHA");
        command.arg(&inner.digests[script]).arg(keys.len());
        command.arg(keys).arg(arguments);
        let result = command.query_async(&mut inner.connection.clone()).await;
        inner.unfinished.reset();
        result.map_err(|e| failed(&inner.server, &e))
    }

    /// One round trip that does nothing.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub async fn ping(&self) -> Result<(), ScriptError> {
        let (ping, mut connection) = (redis::cmd("PING"), self.0.connection.clone());
        let result = ping.query_async::<Value>(&mut connection).await.map(drop);
        self.0.unfinished.reset();
        result.map_err(|e| failed(&self.0.server, &e))
    }

    /// Ends the connection. What was sent may still run.
    pub fn close(&self) {
        self.0.lost.cancel();
    }

    /// Returns once the connection has ended.
    pub async fn lost(&self) {
        self.0.lost.cancelled().await;
    }

    /// The name of a key, which no other mesh on the server uses.
    pub fn key(server: &Server, name: &str) -> String {
        server.channel(name)
    }
}

fn failed(server: &Server, error: &RedisError) -> ScriptError {
    let why = format!("{server}: {error}");
    match error.code() {
        // What a script may not write it is told at its first write, before it has changed anything.
        Some("NOSCRIPT" | "READONLY" | "MASTERDOWN" | "OOM" | "MISCONF" | "NOREPLICAS") => {
            ScriptError::NotRun(why)
        }
        // The keys of a decision are in slots of several nodes.
        Some("CROSSSLOT" | "MOVED" | "ASK" | "CLUSTERDOWN") => ScriptError::NotRun(format!(
            "{server}: a node of a Redis Cluster, which is not supported; a single server is"
        )),
        Some("WRONGTYPE") => ScriptError::WrongType(why),
        _ if error.is_io_error() || error.is_connection_dropped() => ScriptError::Lost(why),
        _ => ScriptError::Failed(why),
    }
}

fn receiver(
    lost: CancellationToken,
    unfinished: Unfinished,
) -> impl Fn(PushInfo) -> Result<(), Infallible> + Send + Sync + 'static {
    move |push| {
        unfinished.reset();
        if push.kind == PushKind::Disconnection {
            lost.cancel();
        }
        Ok(())
    }
}
