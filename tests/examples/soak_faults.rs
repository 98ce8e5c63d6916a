//! Rounds of every fault on two replicas of everything under load; what was acknowledged is checked at the
//! end. Prints how long each fault was felt.

use std::{path::PathBuf, process::Command, time::Duration};
use tars_tests::{
    faults::{Faults, Felt, Load},
    postgres::Postgres,
    process::Up,
    redis::Redis,
};

type Failure = Box<dyn std::error::Error>;

const ROUNDS: usize = 20;

fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let json = std::env::args().any(|argument| argument == "--json");
    let rounds = argument("--rounds").map_or(Ok(ROUNDS), |text| text.parse())?;
    let data = tempfile::tempdir()?;
    let mut faults = Faults {
        postgres: Postgres::start(),
        redis: Redis::start(),
        lasts: Duration::from_secs(10),
    };
    let binary = PathBuf::from(std::env::var_os("TARS_BINARY").ok_or("TARS_BINARY is not set")?);
    let up = Up::new(Command::new(binary), data.path()).unlimited();
    let up = up.replicas(2).database(&faults.postgres.url());
    // Longer than the soak: the callers log in once.
    let up = up.env("TARS__CREDENTIALS__ACCESS_TOKEN_SECONDS", "86400");
    let mut mesh = up.redis(&faults.redis).start();
    let load = Load::start(&mesh).await;
    let mut all: Vec<Felt> = Vec::new();
    for round in 1..=rounds {
        let mut felt = faults.of_redis(&load).await;
        felt.extend(faults.of_postgres(&load).await);
        felt.extend(faults.of_replicas(&load, &mut mesh).await);
        for each in &felt {
            eprintln!("round {round} of {rounds}: {each}");
        }
        all.extend(felt);
    }
    load.check().await;
    if json {
        println!(
            "{}",
            serde_json::json!({ "soak": "faults", "rounds": rounds, "felt": all })
        );
    }
    Ok(())
}
