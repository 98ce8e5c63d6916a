//! Administrators race one another, each service in a process of its own, and after each round every
//! process is asked whether it holds what the database says. Ends at the first that does not.

use serde_json::json;
use std::{path::PathBuf, time::Duration};
use tars_certs::{Authority, SpiffeId, ca::Lifetimes};
use tars_interceptors::client::{Credentials, OutgoingService, outgoing};
use tars_mesh::{Channel, ChannelOptions};
use tars_runtime::clock::Clock;
use tars_search::quantile::quantile;
use tars_tests::{
    fleet::{Fleet, Source, services_over_tls},
    issue_for,
    races::{Outcome, Races},
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const REPORT_EVERY: usize = 50;

fn channel(fleet: &Fleet, service: &str) -> Result<OutgoingService<Channel>, Failure> {
    let clock = Clock::system();
    let authority = Authority::open(
        &fleet.authority_dir(),
        "tars.local",
        Lifetimes::default(),
        clock.now(),
    )?;
    let identity = issue_for(&authority, "/client/racer", Duration::from_secs(86_400));
    let expected = SpiffeId::new("tars.local", &format!("/{service}"))?;
    let target = fleet.addr(service).to_string();
    let options = ChannelOptions::alone(&target, expected, identity, clock);
    Ok(outgoing(Channel::new(options)?, Credentials::Own))
}

fn rounds() -> Result<usize, Failure> {
    let mut arguments = std::env::args().skip_while(|a| a != "--rounds").skip(1);
    Ok(arguments.next().map_or(Ok(1000), |n| n.parse())?)
}

fn quantile_ms(outcomes: &[Outcome], share: f64) -> f64 {
    let ms = |o: &Outcome| o.agreed_after.as_secs_f64() * 1e3;
    let mut values: Vec<f64> = outcomes.iter().map(ms).collect();
    values.sort_by(f64::total_cmp);
    quantile(&values, share).expect("there is at least one round")
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let rounds = rounds()?.max(1);
    let binary = PathBuf::from(std::env::var_os("TARS_BINARY").ok_or("TARS_BINARY is not set")?);
    let fleet = Fleet::start(&binary, Source::Join, &[]).await;
    let mut services = Vec::new();
    for name in services_over_tls() {
        services.push((name, channel(&fleet, name)?));
    }
    let mut races = Races::new(fleet.rest(), fleet.admin().await, services).await?;
    let mut outcomes = Vec::with_capacity(rounds);
    for round in 1..=rounds {
        outcomes.push(races.round().await?);
        if round % REPORT_EVERY == 0 || round == rounds {
            eprintln!("{round} of {rounds} rounds: every process agrees with the database");
        }
    }
    let count = |of: fn(&Outcome) -> bool| outcomes.iter().filter(|o| of(o)).count();
    let report = json!({
        "soak": "races",
        "rounds": rounds,
        "disagreements": 0,
        "processes": services_over_tls().collect::<Vec<_>>(),
        "ended_disabled": count(|o| o.disabled),
        "ended_revoked": count(|o| o.revoked),
        "rotated_first": count(|o| o.rotated),
        "agreed_p50_ms": quantile_ms(&outcomes, 0.5),
        "agreed_p99_ms": quantile_ms(&outcomes, 0.99),
        "agreed_max_ms": quantile_ms(&outcomes, 1.0),
    });
    if std::env::args().any(|a| a == "--json") {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    Ok(())
}
