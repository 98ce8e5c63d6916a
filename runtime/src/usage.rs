//! Usage: what each user has used in each month, on its way to Auth, which counts it.
//!
//! An amount is an outbox row, written in the transaction of what it measures where there is one. Every row has
//! a source and a number, and the numbers of a source rise: Auth remembers the last number that it has counted
//! of each source, so that a row that is written, sent or delivered twice is counted once. A process numbers
//! the calls that it serves, and a training run its steps: what is counted of a run is how far its stored
//! progress goes, however often it was resumed.

mod month;

pub use month::{BadMonth, Month};

use crate::db::{DbError, Fetch, FromRow, Query, Row, Transaction};
use std::fmt;

/// The tables of the outbox.
pub const MIGRATION: &str = "
CREATE TABLE usage_outbox (
    source TEXT NOT NULL,
    number BIGINT NOT NULL,
    month TEXT NOT NULL,
    user_id TEXT NOT NULL,
    dimension TEXT NOT NULL,
    amount BIGINT NOT NULL,
    PRIMARY KEY (source, number)
);
CREATE INDEX usage_outbox_by_user ON usage_outbox (user_id, dimension);
";

/// The table of what Auth does not take, beside the outbox.
pub const SET_ASIDE: &str = "
CREATE TABLE usage_set_aside (
    source TEXT NOT NULL,
    number BIGINT NOT NULL,
    month TEXT NOT NULL,
    user_id TEXT NOT NULL,
    dimension TEXT NOT NULL,
    amount BIGINT NOT NULL,
    why TEXT NOT NULL,
    PRIMARY KEY (source, number)
);
";

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dimension {
    /// Calls that were admitted, whatever their outcome.
    Calls,
    /// Steps of environments that training took.
    TrainingSteps,
    /// Time for which games were solved. Its amounts are in microseconds.
    SolverSeconds,
}

impl Dimension {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Calls, Self::TrainingSteps, Self::SolverSeconds];

    /// Returns the name, as in quotas, metrics and refusals.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::TrainingSteps => "training_steps",
            Self::SolverSeconds => "solver_seconds",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.as_str() == name)
    }

    /// Returns the name of its amounts as they are counted, whose unit may be finer.
    pub fn counted_as(self) -> &'static str {
        match self {
            Self::SolverSeconds => "solver_microseconds",
            other => other.as_str(),
        }
    }

    /// How many of its amounts are one unit of a quota.
    pub fn unit(self) -> u64 {
        match self {
            Self::Calls | Self::TrainingSteps => 1,
            Self::SolverSeconds => 1_000_000,
        }
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An amount of each dimension.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts([u64; Dimension::ALL.len()]);

impl Amounts {
    /// The amount of one dimension.
    pub fn of(&self, dimension: Dimension) -> u64 {
        self.0[dimension as usize]
    }

    /// Adds to the amount of one dimension.
    pub fn add(&mut self, dimension: Dimension, amount: u64) {
        let at = &mut self.0[dimension as usize];
        *at = at.saturating_add(amount);
    }

    /// Takes from the amount of one dimension.
    pub fn subtract(&mut self, dimension: Dimension, amount: u64) {
        let at = &mut self.0[dimension as usize];
        *at = at.saturating_sub(amount);
    }

    /// Whether all are zero.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|amount| *amount == 0)
    }

    /// The dimensions whose amount is not zero.
    pub fn each(&self) -> impl Iterator<Item = (Dimension, u64)> {
        let all = Dimension::ALL.into_iter().zip(self.0);
        all.filter(|(_, amount)| *amount > 0)
    }
}

/// An amount that is counted once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What numbers it.
    pub source: String,
    /// Its number, larger than those of the source before it.
    pub number: i64,
    /// When it was used.
    pub month: Month,
    /// Who used it: a user, also behind an API key.
    pub user_id: String,
    /// What was used.
    pub dimension: Dimension,
    /// How much.
    pub amount: u64,
}

/// What a service tells Auth.
#[derive(Debug, Clone)]
pub struct Report {
    /// The source of which the service wants to know what is counted.
    pub source: String,
    /// What is to be counted, in the order of sources and numbers.
    pub items: Vec<Item>,
    /// The version up to which it knows the totals.
    pub after: i64,
}

/// What Auth answers.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The last number that is counted of the source.
    pub counted: i64,
    /// Totals that have changed.
    pub totals: Vec<Total>,
    /// The version up to which they go.
    pub version: i64,
    /// Whether there are more.
    pub more: bool,
}

/// What one user has used in one month, in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Total {
    /// The month.
    pub month: Month,
    /// The user.
    pub user_id: String,
    /// How much.
    pub amounts: Amounts,
}

impl FromRow for Item {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        let (source, number): (String, i64) = (row.get("source")?, row.get("number")?);
        let row = row.named("usage_outbox", format!("{source}/{number}"));
        Ok(Self {
            number,
            month: row.word("month", |text| text.parse().ok())?,
            user_id: row.get("user_id")?,
            dimension: row.word("dimension", Dimension::parse)?,
            amount: row.number("amount")?,
            source,
        })
    }
}

/// Writes an amount into the outbox in the caller's transaction. One that is there already is left as it is.
///
/// # Errors
///
/// [`DbError`] where the outbox cannot be written.
pub async fn insert(tx: &mut Transaction, item: &Item) -> Result<(), DbError> {
    const INSERT: &str = "INSERT INTO usage_outbox (source, number, month, user_id, dimension, amount) \
                          VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (source, number) DO NOTHING";
    let insert = Query::new(INSERT)
        .bind(&item.source)
        .bind(item.number)
        .bind(item.month.to_string())
        .bind(&item.user_id)
        .bind(item.dimension.as_str())
        .bind(i64::try_from(item.amount).unwrap_or(i64::MAX));
    tx.execute(insert).await?.any();
    Ok(())
}

/// Returns what is not delivered, in the order of sources and numbers.
///
/// # Errors
///
/// [`DbError`] where the outbox cannot be read.
pub async fn peek(db: &mut impl Fetch, limit: i64) -> Result<Vec<Item>, DbError> {
    const WAITING: &str = "SELECT source, number, month, user_id, dimension, amount FROM usage_outbox \
                           ORDER BY source, number LIMIT $1";
    db.all(Query::new(WAITING).bind(limit)).await
}

/// Where a row of the outbox is.
struct Place {
    source: String,
    number: i64,
}

impl FromRow for Place {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(Self {
            source: row.get("source")?,
            number: row.get("number")?,
        })
    }
}

/// Moves those of the first rows aside that cannot be understood. Returns what is wrong with each.
///
/// # Errors
///
/// [`DbError`] where the outbox cannot be read or written.
pub async fn set_damaged_aside(tx: &mut Transaction, limit: i64) -> Result<Vec<String>, DbError> {
    const PLACES: &str = "SELECT source, number FROM usage_outbox ORDER BY source, number LIMIT $1";
    const ONE: &str = "SELECT source, number, month, user_id, dimension, amount FROM usage_outbox \
                       WHERE source = $1 AND number = $2";
    let places: Vec<Place> = tx.all(Query::new(PLACES).bind(limit)).await?;
    let mut damaged = Vec::new();
    for Place { source, number } in places {
        let one = Query::new(ONE).bind(&source).bind(number);
        let read: Result<Option<Item>, DbError> = tx.optional(one).await;
        match read {
            Err(DbError::Corrupt(why)) => {
                let why = why.to_string();
                set_aside(tx, &source, number, &why).await?;
                damaged.push(why);
            }
            read => drop(read?),
        }
    }
    Ok(damaged)
}

/// Moves a row of the outbox aside, which is not delivered any more.
///
/// # Errors
///
/// [`DbError`] where the outbox cannot be written.
pub async fn set_aside(
    tx: &mut Transaction,
    source: &str,
    number: i64,
    why: &str,
) -> Result<(), DbError> {
    const KEEP: &str = "INSERT INTO usage_set_aside (source, number, month, user_id, dimension, amount, why) \
                        SELECT source, number, month, user_id, dimension, amount, CAST($1 AS TEXT) FROM usage_outbox \
                        WHERE source = $2 AND number = $3 ON CONFLICT (source, number) DO NOTHING";
    const TAKE: &str = "DELETE FROM usage_outbox WHERE source = $1 AND number = $2";
    let keep = Query::new(KEEP).bind(why).bind(source).bind(number);
    tx.execute(keep).await?.any();
    let take = Query::new(TAKE).bind(source).bind(number);
    tx.execute(take).await?.any();
    Ok(())
}

/// Removes what is delivered.
///
/// # Errors
///
/// [`DbError`] where the outbox cannot be written.
pub async fn remove(tx: &mut Transaction, delivered: &[Item]) -> Result<(), DbError> {
    const REMOVE: &str = "DELETE FROM usage_outbox WHERE source = $1 AND number <= $2";
    for of_one in delivered.chunk_by(|a, b| a.source == b.source) {
        let Some(last) = of_one.last() else { continue };
        let remove = Query::new(REMOVE).bind(&last.source).bind(last.number);
        tx.execute(remove).await?.any();
    }
    Ok(())
}

/// What a user has used in a month that is not delivered yet.
///
/// # Errors
///
/// [`DbError`] where the outbox cannot be read.
pub async fn waiting(
    db: &mut impl Fetch,
    user_id: &str,
    dimension: Dimension,
    month: Month,
) -> Result<u64, DbError> {
    const SUM: &str = "SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) AS waiting FROM usage_outbox \
                       WHERE user_id = $1 AND dimension = $2 AND month = $3";
    let sum = Query::new(SUM)
        .bind(user_id)
        .bind(dimension.as_str())
        .bind(month.to_string());
    let waiting: i64 = db.value(sum, "waiting").await?;
    Ok(u64::try_from(waiting).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::{Db, Isolation, Migration};

    const MIGRATIONS: &[Migration] = &[
        Migration::new(1, "usage outbox", MIGRATION),
        Migration::new(2, "usage set aside", SET_ASIDE),
    ];

    fn item(source: &str, number: i64, amount: u64) -> Item {
        Item {
            source: source.to_owned(),
            number,
            month: "2026-11".parse().unwrap(),
            user_id: "ada".to_owned(),
            dimension: Dimension::Calls,
            amount,
        }
    }

    async fn insert_all(db: &Db, items: &[Item]) {
        let mut tx = db.write("test", Isolation::Committed).await.unwrap();
        for item in items {
            insert(&mut tx, item).await.unwrap();
        }
        tx.commit().await.unwrap();
    }

    #[tokio::test]
    async fn what_is_written_twice_is_there_once_and_stays_until_it_is_delivered() {
        let dir = tempfile::tempdir().unwrap();
        let place = crate::db::Place::File(dir.path().join("x.db"));
        let db = Db::open(place, MIGRATIONS).await.unwrap();
        let items = [item("a", 1, 3), item("a", 2, 4), item("b", 1, 5)];
        insert_all(&db, &items).await;
        insert_all(&db, &[item("a", 2, 4000)]).await;
        let mut read = db.read("test");
        assert_eq!(peek(&mut read, 10).await.unwrap(), items);
        let month = items[0].month;
        let sum =
            async |read: &mut _, who, what, month| waiting(read, who, what, month).await.unwrap();
        assert_eq!(sum(&mut read, "ada", Dimension::Calls, month).await, 12);
        assert_eq!(sum(&mut read, "bob", Dimension::Calls, month).await, 0);
        let steps = Dimension::TrainingSteps;
        assert_eq!(sum(&mut read, "ada", steps, month).await, 0);
        let next = month.next();
        assert_eq!(sum(&mut read, "ada", Dimension::Calls, next).await, 0);
        let mut tx = db.write("test", Isolation::Committed).await.unwrap();
        remove(&mut tx, &items[..1]).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(peek(&mut read, 10).await.unwrap(), items[1..]);
        assert_eq!(peek(&mut read, 1).await.unwrap(), items[1..2]);
    }

    #[tokio::test]
    async fn what_cannot_be_understood_or_delivered_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let place = crate::db::Place::File(dir.path().join("x.db"));
        let db = Db::open(place, MIGRATIONS).await.unwrap();
        insert_all(&db, &[item("a", 1, 3), item("a", 2, 4), item("b", 1, 5)]).await;
        let mut tx = db.write("test", Isolation::Committed).await.unwrap();
        let spoil =
            "UPDATE usage_outbox SET dimension = 'storage' WHERE source = 'a' AND number = 1";
        tx.execute(Query::new(spoil)).await.unwrap().one().unwrap();
        tx.commit().await.unwrap();
        let corrupt = peek(&mut db.read("test"), 10).await;
        assert!(matches!(corrupt, Err(DbError::Corrupt(_))), "{corrupt:?}");
        let mut tx = db.write("test", Isolation::Committed).await.unwrap();
        let damaged = set_damaged_aside(&mut tx, 10).await.unwrap();
        assert!(
            damaged.len() == 1 && damaged[0].contains("a/1"),
            "{damaged:?}"
        );
        set_aside(&mut tx, "b", 1, "nobody takes it").await.unwrap();
        tx.commit().await.unwrap();
        let mut read = db.read("test");
        assert_eq!(peek(&mut read, 10).await.unwrap(), [item("a", 2, 4)]);
        let count = Query::new("SELECT COUNT(*) AS n FROM usage_set_aside WHERE amount IN (3, 5)");
        let kept: i64 = read.value(count, "n").await.unwrap();
        assert_eq!(kept, 2);
    }

    #[test]
    fn amounts_are_exact_and_never_wrap() {
        let mut amounts = Amounts::default();
        assert!(amounts.is_empty());
        amounts.add(Dimension::Calls, u64::MAX - 1);
        amounts.add(Dimension::Calls, 7);
        assert_eq!(amounts.of(Dimension::Calls), u64::MAX);
        amounts.subtract(Dimension::TrainingSteps, 1);
        let each: Vec<_> = amounts.each().collect();
        assert_eq!(each, [(Dimension::Calls, u64::MAX)]);
    }
}
