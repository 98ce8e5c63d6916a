//! What a service's own store costs: durable writes, groups of them, point reads and pages through Auth's
//! store, against the same statements by bare sqlx on the same database, with the same durability. Both
//! take turns within one run, so that a machine that is slow for a while is slow for both.
//!
//! `exclusive` is a change whose transaction excludes other exclusive ones of the service, which the
//! baseline's does not: by many callers on PostgreSQL, it shows what that costs where nothing else makes
//! them wait for each other.
//!
//! A ratio is that of the operations in a second, or of the processor time of an operation; above 1 the
//! store is faster. The processor time of PostgreSQL's own processes is not in it.

mod bare;
mod fixture;
mod rounds;

use bare::{Postgres, Sqlite};
use fixture::{Fixture, Rows};
use rounds::{Pair, Work, interleaved};
use serde_json::{Value, json};
use std::{path::Path, time::Duration};
use tars_auth::Measured;
use tars_runtime::{
    audit::Record,
    clock::Clock,
    config::Database,
    db::{Place, Server},
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How many records a grouped write has.
const GROUP: usize = 50;
/// How many callers write or read at once, where several do.
const CALLERS: usize = 8;
/// How many API keys there are to read.
const KEYS: usize = 1_000;
/// A page reads one row more, to know whether it is the last: as many as the small table has.
const PAGE: u32 = 9;

/// A service's storage, as the service or as bare sqlx has it.
trait Store: Clone + Send + Sync + 'static {
    /// Appends records to the audit log in one durable transaction.
    fn append(&self, records: &[Record]) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Reads an API key, which is there.
    fn read_key(&self, id: &str) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Reads an API key and writes its next version, in one durable transaction.
    fn change_key(&self, id: &str) -> impl Future<Output = Result<(), Failure>> + Send;
}

impl Store for Measured {
    async fn append(&self, records: &[Record]) -> Result<(), Failure> {
        Ok(Self::append(self, records).await?)
    }

    async fn read_key(&self, id: &str) -> Result<(), Failure> {
        match self.has_key(id).await? {
            true => Ok(()),
            false => Err("there is no such key".into()),
        }
    }

    async fn change_key(&self, id: &str) -> Result<(), Failure> {
        Ok(Self::change_key(self, id).await?)
    }
}

/// How much is measured.
#[derive(Clone, Copy)]
struct Scale {
    rounds: usize,
    round: Duration,
    /// The rows of the large table.
    rows: i64,
}

impl Scale {
    const WHOLE: Self = Self {
        rounds: 16,
        round: Duration::from_millis(400),
        rows: 1_000_000,
    };
    const QUICK: Self = Self {
        rounds: 6,
        round: Duration::from_millis(150),
        rows: 50_000,
    };
}

/// New records, of which none is in the log yet.
fn records(clock: &Clock, count: usize) -> Vec<Record> {
    let record = |n: usize| {
        Record::new(clock, "orchestration", "agent.reloaded")
            .caller("user:ada")
            .method("/tars.orchestration.v1.AgentService/ReloadAgent")
            .resource("agents/policy")
            .detail("position", n)
    };
    (0..count).map(record).collect()
}

/// Appends so many records at a time.
#[derive(Clone)]
struct Append<S>(S, Clock, usize);

impl<S: Store> Work for Append<S> {
    async fn run(&self, _: usize) -> Result<(), Failure> {
        let Self(store, clock, count) = self;
        store.append(&records(clock, *count)).await
    }
}

/// Reads one key after the other.
#[derive(Clone)]
struct ReadKey<S>(S);

impl<S: Store> Work for ReadKey<S> {
    async fn run(&self, n: usize) -> Result<(), Failure> {
        self.0.read_key(&fixture::key(n % KEYS)).await
    }
}

/// Changes one key after the other: several callers change different ones.
#[derive(Clone)]
struct ChangeKey<S>(S);

impl<S: Store> Work for ChangeKey<S> {
    async fn run(&self, n: usize) -> Result<(), Failure> {
        self.0.change_key(&fixture::key(n % KEYS)).await
    }
}

/// Lists the newest records.
#[derive(Clone)]
struct List(Measured);

impl Work for List {
    async fn run(&self, _: usize) -> Result<(), Failure> {
        match self.0.first_page(PAGE).await? {
            n if n == PAGE as usize => Ok(()),
            n => Err(format!("a page has {n} records").into()),
        }
    }
}

/// Compares a store with bare sqlx.
async fn compare(ours: impl Store, bare: impl Store, scale: Scale) -> Result<Value, Failure> {
    let clock = Clock::system();
    let write = async |callers, count: usize| {
        let ours = Append(ours.clone(), clock.clone(), count);
        let bare = Append(bare.clone(), clock.clone(), count);
        interleaved(Pair::of_rows(count), callers, scale, &ours, &bare).await
    };
    let read = async |callers| {
        let (ours, bare) = (ReadKey(ours.clone()), ReadKey(bare.clone()));
        interleaved(Pair::of_rows(1), callers, scale, &ours, &bare).await
    };
    let change = async |callers| {
        let (ours, bare) = (ChangeKey(ours.clone()), ChangeKey(bare.clone()));
        interleaved(Pair::of_rows(1), callers, scale, &ours, &bare).await
    };
    Ok(json!({
        "write": write(1, 1).await?,
        "write_by_many": write(CALLERS, 1).await?,
        "grouped": write(1, GROUP).await?,
        "read": read(1).await?,
        "read_by_many": read(CALLERS).await?,
        "exclusive": change(1).await?,
        "exclusive_by_many": change(CALLERS).await?,
    }))
}

/// The first page of a small and of a large table, in turns.
async fn pages(small: Measured, large: Measured, scale: Scale) -> Result<Value, Failure> {
    interleaved(Pair::of_rows(1), 1, scale, &List(small), &List(large)).await
}

/// All of an engine.
async fn engine<B: Store>(
    fixture: &Fixture,
    bare: B,
    place: impl Fn(&'static str) -> Result<Place, Failure>,
    scale: Scale,
) -> Result<Value, Failure> {
    let work = Measured::open(&place("work")?).await?;
    fixture
        .fill(
            "work",
            Rows {
                keys: KEYS,
                records: 0,
            },
        )
        .await?;
    let mut report = compare(work, bare, scale).await?;
    let (small, large) = (
        Measured::open(&place("small")?).await?,
        Measured::open(&place("large")?).await?,
    );
    let small_rows = i64::from(PAGE) + 1;
    fixture.fill("small", Rows::of_records(small_rows)).await?;
    fixture.fill("large", Rows::of_records(scale.rows)).await?;
    let page = pages(small, large, scale).await?;
    report["page_ratio"] = page["ratio"].clone();
    report["page"] = json!({
        "rows": [small_rows, scale.rows],
        "per_second": [page["per_second"], page["baseline_per_second"]],
        "cpu_us": [page["cpu_us"], page["baseline_cpu_us"]],
    });
    Ok(report)
}

async fn sqlite(dir: &Path, scale: Scale) -> Result<Value, Failure> {
    let file = |name: &str| dir.join(name).join("auth.db");
    let place = |name| Ok(Place::File(file(name)));
    // Makes the file.
    Measured::open(&place("work")?).await?;
    let bare = Sqlite::open(&file("work")).await?;
    let fixture = Fixture::Sqlite(dir.to_owned());
    engine(&fixture, bare, place, scale).await
}

async fn postgres(url: &str, scale: Scale) -> Result<Value, Failure> {
    let place = |name: &'static str| {
        let settings = Database {
            url: Some(url.to_owned()),
            schema_prefix: name.to_owned(),
            ..Database::default()
        };
        let server = Server::of(&settings)?.ok_or("there is no server")?;
        Ok(Place::Server {
            server,
            service: "auth".to_owned(),
        })
    };
    let bare = Postgres::open(url, "work_auth")?;
    let fixture = Fixture::Postgres(url.to_owned());
    engine(&fixture, bare, place, scale).await
}

/// Every process of the mesh has periodic work. Without any timer that is due sooner, each new one would
/// wake the thread that waits for them.
async fn tick() {
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    loop {
        tick.tick().await;
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let has = |flag: &str| std::env::args().any(|a| a == flag);
    let scale = if has("--quick") {
        Scale::QUICK
    } else {
        Scale::WHOLE
    };
    tokio::spawn(tick());
    // Beside the binary, since a temporary directory may be in memory.
    let binary = std::env::current_exe()?;
    let dir = tempfile::tempdir_in(binary.parent().ok_or("no directory")?)?;
    let mut report = json!({
        "bench": "store",
        "baseline": "the same statements by bare sqlx, on the same database, with the same durability",
        "rounds": scale.rounds,
        "callers": CALLERS,
        "rows_in_a_group": GROUP,
        "sqlite": sqlite(dir.path(), scale).await?,
    });
    match std::env::var("TARS_BENCH_POSTGRES") {
        Ok(url) => report["postgres"] = postgres(&url, scale).await?,
        Err(_) => {
            report["postgres"] = Value::Null;
            report["postgres_missing"] = "PostgreSQL is not installed on this machine".into();
        }
    }
    if has("--json") {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    Ok(())
}
