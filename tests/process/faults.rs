//! What processes depend on, and processes themselves, fail under load: they are killed, hang, and come back.

#![allow(clippy::unwrap_used)]

#[cfg(target_os = "linux")]
#[path = "faults/disk.rs"]
mod disk;
#[path = "faults/frozen.rs"]
mod frozen;

use std::{process::Command, time::Duration};
use tars_tests::{
    faults::{Faults, Load},
    postgres::Postgres,
    process::Up,
    redis::Redis,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and redis-server: cargo xtask test"]
async fn nothing_acknowledged_is_lost_and_nothing_is_done_twice_whatever_fails() {
    let data = tempfile::tempdir().unwrap();
    let mut faults = Faults {
        postgres: Postgres::start(),
        redis: Redis::start(),
        // Longer than the mesh takes to notice one.
        lasts: Duration::from_secs(3),
    };
    let tars = Command::new(env!("CARGO_BIN_EXE_tars"));
    let up = Up::new(tars, data.path()).unlimited().replicas(2);
    let up = up.database(&faults.postgres.url());
    let mut mesh = up.redis(&faults.redis).start();
    let load = Load::start(&mesh).await;
    for felt in faults.of_redis(&load).await {
        assert_eq!(felt.failed, 0, "no call needs Redis: {felt}");
    }
    for felt in faults.of_postgres(&load).await {
        println!("{felt}");
    }
    for felt in faults.of_replicas(&load, &mut mesh).await {
        println!("{felt}");
    }
    load.check().await;
}
