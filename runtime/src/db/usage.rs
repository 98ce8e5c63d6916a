//! Metrics of the connections to a service's database.

use super::{Db, pools::Pools};
use crate::metrics::Metrics;

/// The connections of a service at one moment, for reading and for writing together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    open: u32,
    idle: usize,
    most: u32,
}

impl Usage {
    fn add<D: sqlx::Database>(mut self, pool: &sqlx::Pool<D>) -> Self {
        self.open += pool.size();
        self.idle += pool.num_idle();
        self.most += pool.options().get_max_connections();
        self
    }

    /// Counted from the open ones: the pool counts both at slightly different moments.
    fn in_use(self) -> f64 {
        (f64::from(self.open) - self.idle as f64).max(0.0)
    }
}

impl Pools {
    fn usage(&self) -> Usage {
        match self {
            Self::Sqlite { reader, writer } => Usage::default().add(reader).add(writer),
            Self::Postgres { reader, writer, .. } => Usage::default().add(reader).add(writer),
        }
    }
}

impl Db {
    /// Registers the metrics of a service's connections. A service that waits for its database while all
    /// its connections are in use needs more of them.
    pub fn register(&self, metrics: &Metrics, service: &'static str) {
        let gauge = |name, help, value: fn(Usage) -> f64| {
            let pools = self.pools.clone();
            metrics.measure(name, help, service, move || Some(value(pools.usage())));
        };
        gauge(
            "database_connections_open",
            "Connections to the database",
            |usage| f64::from(usage.open),
        );
        gauge(
            "database_connections_in_use",
            "Connections to the database on which something runs",
            Usage::in_use,
        );
        gauge(
            "database_connections_max",
            "Connections to the database that there may be",
            |usage| f64::from(usage.most),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Isolation;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_transaction_has_a_connection_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("x.db"), &[]).await.unwrap();
        let metrics = Metrics::default();
        db.register(&metrics, "auth");
        let shows = |line: &str| metrics.open_metrics().unwrap().contains(line);
        // A connection is returned in the background.
        let idle = async || {
            while !shows("database_connections_in_use{service=\"auth\"} 0") {
                tokio::task::yield_now().await;
            }
        };
        let limit = Duration::from_secs(10);
        timeout(limit, idle()).await.unwrap();
        let tx = db.write("test", Isolation::Exclusive).await.unwrap();
        assert!(shows("database_connections_in_use{service=\"auth\"} 1"));
        assert!(shows("database_connections_max{service=\"auth\"} 3"));
        drop(tx);
        timeout(limit, idle()).await.unwrap();
        db.close().await;
        assert!(shows("database_connections_open{service=\"auth\"} 0"));
    }
}
