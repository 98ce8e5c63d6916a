//! What users have used. Services report it; here each amount is counted once, whoever sends it and however often.
//!
//! Of every source the last number that is counted is stored with the totals that it changed, so that a report
//! that was lost on its way back, or that two replicas send, changes nothing the second time. Reports are counted
//! one after the other, in the order of a counter, by which services follow the totals.

use crate::{
    Auth, AuthError,
    store::{self, Store, UsagePlace as Place, UsageRow},
};
use std::{collections::BTreeMap, time::Duration};
use tars_runtime::{
    page::{self, BadToken},
    usage::{Amounts, Answer, Item, Month, Report, Total},
};
use uuid::Uuid;

/// How long after its end a month takes what is reported late. What comes later counts for the present month.
const CLOSED_AFTER: Duration = Duration::from_secs(72 * 3600);
/// How long a source is remembered of which nothing was counted. Nothing waits that long in an outbox.
const REMEMBERED: Duration = Duration::from_secs(70 * 86_400);
/// Totals in one answer.
const TOTALS: i64 = 500;

/// A row of usage, and whether it is final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) row: UsageRow,
    pub(crate) closed: bool,
}

/// Which usage is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) first: Month,
    pub(crate) last: Month,
    pub(crate) user: Option<Uuid>,
}

impl Auth {
    /// The present month.
    pub(crate) fn month(&self) -> Month {
        Month::at(self.clock.now())
    }

    /// Counts what a service reports, and returns what it asks for. The sources of each service are its own.
    ///
    /// # Errors
    ///
    /// When the database fails; then nothing is counted, or it is not known whether it is, and the same report
    /// may be sent again.
    pub async fn count_usage(&self, service: &str, report: &Report) -> Result<Answer, AuthError> {
        let now = self.clock.now();
        if !report.items.is_empty() {
            count(&self.store, service, &report.items, now).await?;
        }
        let mut db = self.store.read("usage.changed");
        let source = source_of(service, &report.source);
        // Read before the totals: what is counted in between is in both for a moment, and never in neither.
        let counted = store::counted(&mut db, &source).await?;
        // Who knows of more than there is knew a database that a backup has taken the place of.
        let after = match store::last_version(&mut db).await? {
            last if last < report.after => 0,
            _ => report.after,
        };
        let changed = store::changed_usage(&mut db, Month::at(now), after, TOTALS);
        let changed = changed.await?;
        Ok(Answer {
            counted,
            version: changed.last().map_or(after, |row| row.version),
            more: i64::try_from(changed.len()) == Ok(TOTALS),
            totals: changed.into_iter().map(total).collect(),
        })
    }

    /// Lists what users have used, by month and user, with the token of the next page.
    pub(crate) async fn list_usage(
        &self,
        asked: &Asked,
        token: &str,
        page_size: u32,
    ) -> Result<(Vec<Used>, String), AuthError> {
        let (size, after) = (page::size(page_size), place(token)?);
        let months = (asked.first, asked.last);
        let mut db = self.store.read("usage.list");
        let rows = store::usage(&mut db, months, asked.user, &after, size).await?;
        let token = |row: &UsageRow| format!("{}_{}", row.month, row.user_id);
        let (rows, next) = rows.cut(token);
        let stored = store::open_from(&mut db).await?;
        let open_from = stored.max(open_from(self.clock.now()).to_string());
        let used = rows.into_iter().map(|row| Used {
            closed: row.month.to_string() < open_from,
            row,
        });
        Ok((used.collect(), next))
    }

    /// The user of a name or an id.
    pub(crate) async fn user_named(&self, text: &str) -> Result<Uuid, AuthError> {
        let mut db = self.store.read("users.named");
        if let Ok(id) = Uuid::try_parse(text) {
            return Ok(id);
        }
        let found = store::user_by_name(&mut db, text).await?;
        let found = found.ok_or_else(|| AuthError::NotFound("user", text.to_owned()))?;
        Ok(found.id)
    }
}

/// The first month that is open at a time.
fn open_from(now: Duration) -> Month {
    Month::at(now.saturating_sub(CLOSED_AFTER))
}

fn source_of(service: &str, source: &str) -> String {
    format!("{service}/{source}")
}

fn place(token: &str) -> Result<Place, BadToken> {
    if token.is_empty() {
        return Ok(Place {
            month: String::new(),
            user_id: Uuid::nil(),
        });
    }
    let (month, user_id) = token.split_once('_').ok_or(BadToken)?;
    let month: Month = month.parse().map_err(|_| BadToken)?;
    Ok(Place {
        month: month.to_string(),
        user_id: Uuid::try_parse(user_id).map_err(|_| BadToken)?,
    })
}

fn total(row: UsageRow) -> Total {
    Total {
        month: row.month,
        user_id: row.user_id.to_string(),
        amounts: row.amounts,
    }
}

async fn count(
    store: &Store,
    service: &str,
    items: &[Item],
    now: Duration,
) -> Result<(), AuthError> {
    let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let us = |at: Duration| i64::try_from(at.as_micros()).unwrap_or(i64::MAX);
    let mut tx = store.begin_concurrent("usage.count").await?;
    let versions = number(items.len());
    let (last, open_from) = store::next_versions(&mut tx, versions, open_from(now)).await?;
    let mut totals: BTreeMap<(Month, Uuid), Amounts> = BTreeMap::new();
    let mut sources: BTreeMap<String, i64> = BTreeMap::new();
    let mut items: Vec<&Item> = items.iter().collect();
    items.sort_by_key(|item| (&item.source, item.number));
    for item in items {
        let source = source_of(service, &item.source);
        let counted = match sources.get(&source) {
            Some(counted) => *counted,
            None => store::counted(&mut tx, &source).await?,
        };
        if item.number > counted {
            let of = (booked(item.month, &open_from, now), user(item));
            totals
                .entry(of)
                .or_default()
                .add(item.dimension, item.amount);
        }
        sources.insert(source, counted.max(item.number));
    }
    for (version, (of, amounts)) in (last - versions + 1..).zip(totals) {
        store::add_usage(&mut tx, of, &amounts, version).await?;
    }
    for (source, counted) in sources {
        store::put_counted(&mut tx, &source, counted, us(now)).await?;
    }
    store::drop_sources(&mut tx, us(now.saturating_sub(REMEMBERED))).await?;
    Ok(tx.commit().await?)
}

/// The month for which something counts: its own while that is open, else the present one. A service whose clock is
/// ahead may be in the next month already.
fn booked(month: Month, open_from: &str, now: Duration) -> Month {
    let present = Month::at(now);
    match month.to_string().as_str() < open_from || month > present.next() {
        true => present,
        false => month,
    }
}

/// Whose usage it is. What is of no user that could be stored is kept, under no user's id.
fn user(item: &Item) -> Uuid {
    Uuid::try_parse(&item.user_id).unwrap_or_else(|_| {
        tracing::warn!(
            user = item.user_id,
            source = item.source,
            "usage of an unknown user"
        );
        Uuid::nil()
    })
}

#[cfg(test)]
mod tests;
