use super::*;
use tars_interceptors::usage::{QuotaHandle, UsageMetrics};
use tars_proto::fault;
use tars_runtime::{
    clock::Clock,
    db::{Fetch, Migration, Place, Query},
    metrics::Metrics,
};

const MIGRATIONS: &[Migration] = &[
    Migration::new(1, "usage outbox", usage::MIGRATION),
    Migration::new(2, "usage set aside", usage::SET_ASIDE),
];

/// Auth, which takes nothing of one user.
#[derive(Default)]
struct Picky {
    taken: Vec<i64>,
    reports: usize,
    /// Whether it takes no report at all.
    refuses_all: bool,
}

impl Counter for Picky {
    async fn report(&mut self, report: Report) -> Result<Answer, ReportError> {
        self.reports += 1;
        if self.refuses_all || report.items.iter().any(|item| item.user_id == "nobody") {
            return Err(fault::invalid_field("items.user_id", "is nobody").into());
        }
        self.taken
            .extend(report.items.iter().map(|item| item.number));
        Ok(Answer::default())
    }
}

struct Rig {
    _dir: tempfile::TempDir,
    db: Db,
    usage: Usage,
    metrics: Metrics,
}

impl Rig {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::File(dir.path().join("x.db"));
        let (clock, metrics) = (Clock::system(), Metrics::default());
        let counters = UsageMetrics::new(&metrics);
        Self {
            db: Db::open(place, MIGRATIONS).await.unwrap(),
            _dir: dir,
            usage: Usage::new(clock, QuotaHandle::default(), counters),
            metrics,
        }
    }

    async fn put(&self, users: &[&str]) {
        let items: Vec<Item> = (1..)
            .zip(users)
            .map(|(number, user)| Item {
                source: "s".to_owned(),
                number,
                month: "2026-11".parse().unwrap(),
                user_id: (*user).to_owned(),
                dimension: Dimension::Calls,
                amount: 1,
            })
            .collect();
        store(&self.db, &items).await.unwrap();
    }

    async fn ship(&self, auth: &mut Picky) -> Result<bool, ReportError> {
        ship_some(&self.db, &self.usage, auth, &mut 0).await
    }

    async fn count(&self, text: &'static str) -> i64 {
        let mut read = self.db.read("test");
        read.value(Query::new(text), "n").await.unwrap()
    }

    async fn waiting(&self) -> i64 {
        self.count("SELECT COUNT(*) AS n FROM usage_outbox").await
    }

    async fn set_aside(&self) -> i64 {
        let counted = format!("usage_items_set_aside_total {}", {
            self.count("SELECT COUNT(*) AS n FROM usage_set_aside")
                .await
        });
        assert!(self.metrics.open_metrics().unwrap().contains(&counted));
        self.count("SELECT COUNT(*) AS n FROM usage_set_aside")
            .await
    }
}

#[tokio::test]
async fn what_auth_does_not_take_is_set_aside_and_the_rest_is_counted() {
    let rig = Rig::start().await;
    rig.put(&["ada", "nobody", "bob", "nobody", "eve"]).await;
    let mut auth = Picky::default();
    assert!(rig.ship(&mut auth).await.unwrap(), "there may be more");
    assert_eq!(auth.taken, [1, 3, 5]);
    assert_eq!((rig.waiting().await, rig.set_aside().await), (0, 2));
    assert!(!rig.ship(&mut auth).await.unwrap());
}

#[tokio::test]
async fn nothing_is_set_aside_while_auth_takes_no_report_at_all() {
    let rig = Rig::start().await;
    rig.put(&["ada", "bob"]).await;
    let mut auth = Picky {
        refuses_all: true,
        ..Picky::default()
    };
    assert!(rig.ship(&mut auth).await.is_err());
    assert_eq!((rig.waiting().await, rig.set_aside().await), (2, 0));
}

#[tokio::test]
async fn a_damaged_row_does_not_keep_the_rest_from_auth() {
    let rig = Rig::start().await;
    rig.put(&["ada", "bob", "eve"]).await;
    let mut tx = rig.db.write("test", Isolation::Committed).await.unwrap();
    let spoil = "UPDATE usage_outbox SET month = 'soon' WHERE number = 2";
    tx.execute(Query::new(spoil)).await.unwrap().one().unwrap();
    tx.commit().await.unwrap();
    let mut auth = Picky::default();
    assert!(rig.ship(&mut auth).await.unwrap());
    rig.ship(&mut auth).await.unwrap();
    assert_eq!(
        (auth.taken.as_slice(), auth.reports),
        ([1, 3].as_slice(), 1)
    );
    assert_eq!((rig.waiting().await, rig.set_aside().await), (0, 1));
}

/// Auth, which has told all that it knows, and shows after what it is asked.
struct Telling(tokio::sync::mpsc::UnboundedSender<i64>);

impl Counter for Telling {
    async fn report(&mut self, report: Report) -> Result<Answer, ReportError> {
        self.0.send(report.after).ok();
        Ok(Answer {
            version: 7,
            ..Answer::default()
        })
    }
}

#[tokio::test]
async fn all_totals_are_read_anew_when_a_month_begins() {
    let rig = Rig::start().await;
    let clock = Clock::manual("2026-11".parse::<usage::Month>().unwrap().start());
    let counters = UsageMetrics::new(&Metrics::default());
    let usage = Usage::new(clock.clone(), QuotaHandle::default(), counters);
    let (asked, mut after) = tokio::sync::mpsc::unbounded_channel();
    let (written, stop) = (Arc::new(Notify::new()), CancellationToken::new());
    let condition = Condition::new(clock.clone());
    let shipping = tokio::spawn(ship(
        rig.db.clone(),
        usage,
        Telling(asked),
        Arc::clone(&written),
        stop.clone(),
        condition,
    ));
    let mut next = async || {
        written.notify_one();
        let asked = tokio::time::timeout(Duration::from_secs(60), after.recv());
        asked.await.unwrap().unwrap()
    };
    assert_eq!((next().await, next().await, next().await), (0, 7, 7));
    clock.advance(Duration::from_secs(31 * 86_400));
    // One question may be on its way.
    let begun = [next().await, next().await, next().await];
    assert!(begun.contains(&0), "{begun:?}");
    assert_eq!(next().await, 7);
    stop.cancel();
    shipping.await.unwrap();
}
