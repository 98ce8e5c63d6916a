use super::*;
use crate::testing::World;
use tars_runtime::{
    db::LostCommit,
    usage::Dimension::{self, Calls, SolverSeconds, TrainingSteps},
};

const ADA: Uuid = Uuid::from_u128(1);
const BOB: Uuid = Uuid::from_u128(2);

fn month(text: &str) -> Month {
    text.parse().unwrap()
}

/// The month of the clock of [`World`].
const NOW: &str = "2027-01";

fn item(source: &str, number: i64, user: Uuid, dimension: Dimension, amount: u64) -> Item {
    Item {
        source: source.to_owned(),
        number,
        month: month(NOW),
        user_id: user.to_string(),
        dimension,
        amount,
    }
}

fn calls(source: &str, number: i64, user: Uuid, amount: u64) -> Item {
    item(source, number, user, Calls, amount)
}

fn report(items: Vec<Item>) -> Report {
    Report {
        source: "p".to_owned(),
        items,
        after: 0,
    }
}

impl World {
    async fn reports(&self, items: &[Item]) -> Answer {
        let report = report(items.to_vec());
        self.auth.count_usage("automl", &report).await.unwrap()
    }

    /// What is listed of some months: month, user, calls, and whether it is closed.
    async fn listed(&self, first: &str, last: &str) -> Vec<(String, Uuid, u64, bool)> {
        let asked = Asked {
            first: month(first),
            last: month(last),
            user: None,
        };
        let (rows, _) = self.auth.list_usage(&asked, "", 0).await.unwrap();
        let row = |used: Used| {
            let calls = used.row.amounts.of(Calls);
            (
                used.row.month.to_string(),
                used.row.user_id,
                calls,
                used.closed,
            )
        };
        rows.into_iter().map(row).collect()
    }

    async fn used(&self) -> Vec<(Uuid, u64)> {
        let listed = self.listed(NOW, NOW).await.into_iter();
        listed.map(|(_, user, calls, _)| (user, calls)).collect()
    }
}

#[tokio::test]
async fn what_is_reported_again_is_counted_once() {
    let world = World::new().await;
    let first = [calls("p", 1, ADA, 3), calls("p", 2, BOB, 5)];
    assert_eq!(world.reports(&first).await.counted, 2);
    assert_eq!(world.reports(&first).await.counted, 2);
    // A part of it, and what came after it.
    let more = [calls("p", 2, BOB, 5), calls("p", 3, ADA, 1)];
    assert_eq!(world.reports(&more).await.counted, 3);
    assert_eq!(world.reports(&more[..1]).await.counted, 3);
    assert_eq!(world.used().await, [(ADA, 4), (BOB, 5)]);
}

#[tokio::test]
async fn every_dimension_is_counted_by_itself() {
    let world = World::new().await;
    let items = [
        item("p", 1, ADA, Calls, 1),
        item("p", 2, ADA, SolverSeconds, 1_500_000),
        item("run", 2000, ADA, TrainingSteps, 2000),
        item("run", 3000, ADA, TrainingSteps, 1000),
    ];
    world.reports(&items).await;
    let totals = world.reports(&[]).await.totals;
    let amounts: Vec<_> = totals[0].amounts.each().collect();
    let expected = [
        (Calls, 1),
        (TrainingSteps, 3000),
        (SolverSeconds, 1_500_000),
    ];
    assert_eq!((totals.len(), amounts), (1, expected.to_vec()));
}

#[tokio::test]
async fn a_service_cannot_use_up_the_numbers_of_another() {
    let world = World::new().await;
    world.reports(&[calls("p", 9, ADA, 1)]).await;
    let other = report(vec![calls("p", 1, ADA, 1)]);
    let answer = world.auth.count_usage("hypersync", &other).await.unwrap();
    assert_eq!(answer.counted, 1);
    assert_eq!(world.used().await, [(ADA, 2)]);
}

#[tokio::test]
async fn a_report_whose_commit_is_in_doubt_is_counted_once() {
    for lost in [LostCommit::Made, LostCommit::Undone] {
        let world = World::new().await;
        let items = [calls("p", 1, ADA, 3)];
        world.auth.db().lose_commit("usage.count", lost);
        let sent = report(items.to_vec());
        assert!(world.auth.count_usage("automl", &sent).await.is_err());
        world.reports(&items).await;
        assert_eq!(world.used().await, [(ADA, 3)]);
    }
}

#[tokio::test]
async fn totals_are_followed_by_their_versions() {
    let world = World::new().await;
    let answer = world
        .reports(&[calls("p", 1, ADA, 3), calls("p", 2, BOB, 5)])
        .await;
    assert_eq!(answer.totals.len(), 2);
    let after = |after| {
        let report = Report {
            after,
            ..report(Vec::new())
        };
        let auth = world.auth.clone();
        async move { auth.count_usage("orchestration", &report).await.unwrap() }
    };
    let none = after(answer.version).await;
    assert!(none.totals.is_empty() && none.version == answer.version && !none.more);
    world.reports(&[calls("p", 3, BOB, 1)]).await;
    let changed = after(answer.version).await;
    let of_bob: Vec<_> = changed
        .totals
        .iter()
        .map(|t| (&*t.user_id, t.amounts.of(Calls)))
        .collect();
    assert_eq!(of_bob, [(&*BOB.to_string(), 6)]);
    assert!(changed.version > answer.version);
}

#[tokio::test]
async fn many_totals_come_in_pages() {
    let world = World::new().await;
    let count = TOTALS + 3;
    let items = (1..=count).map(|n| calls("p", n, Uuid::from_u128(n as u128), 1));
    let items: Vec<Item> = items.collect();
    let answer = world.reports(&items).await;
    assert!(answer.more && answer.totals.len() == 500);
    let rest = Report {
        after: answer.version,
        ..report(Vec::new())
    };
    let rest = world.auth.count_usage("automl", &rest).await.unwrap();
    assert!(!rest.more && rest.totals.len() == 3);
}

#[tokio::test]
async fn a_month_is_closed_72_hours_after_its_end_and_late_usage_counts_for_the_present_one() {
    let world = World::new().await;
    let at = |text: &str| month(text).end() - world.clock.now();
    world.reports(&[calls("p", 1, ADA, 3)]).await;
    world
        .clock
        .advance(at(NOW) + CLOSED_AFTER - Duration::from_secs(1));
    world.reports(&[calls("p", 2, ADA, 4)]).await;
    let open = (NOW.to_owned(), ADA, 7, false);
    assert_eq!(world.listed(NOW, "2027-12").await, [open]);
    world.clock.advance(Duration::from_secs(1));
    let closed = (NOW.to_owned(), ADA, 7, true);
    assert_eq!(world.listed(NOW, NOW).await, std::slice::from_ref(&closed));
    let answer = world
        .reports(&[calls("p", 3, ADA, 5), calls("p", 3, ADA, 5)])
        .await;
    assert_eq!(answer.counted, 3);
    let late = ("2027-02".to_owned(), ADA, 5, false);
    assert_eq!(
        world.listed(NOW, "2027-12").await,
        [closed.clone(), late.clone()]
    );
    // A clock that is set back opens no month.
    world.clock.step_back(Duration::from_secs(3600));
    world.reports(&[calls("p", 4, ADA, 1)]).await;
    let late = ("2027-02".to_owned(), ADA, 6, false);
    assert_eq!(world.listed(NOW, "2027-12").await, [closed, late]);
}

#[tokio::test]
async fn months_of_a_clock_that_is_far_ahead_are_not_believed() {
    let world = World::new().await;
    let ahead = |number, of: &str| Item {
        month: month(of),
        ..calls("p", number, ADA, 1)
    };
    world
        .reports(&[ahead(1, "2027-02"), ahead(2, "2027-03")])
        .await;
    let rows = world.listed("2020-01", "2040-01").await;
    let months: Vec<_> = rows
        .iter()
        .map(|(month, _, calls, _)| (&**month, *calls))
        .collect();
    assert_eq!(months, [(NOW, 1), ("2027-02", 1)]);
}

#[tokio::test]
async fn usage_of_nobody_is_kept_and_holds_up_nothing() {
    let world = World::new().await;
    let nobody = Item {
        user_id: "dev".to_owned(),
        ..calls("p", 1, ADA, 2)
    };
    world.reports(&[nobody, calls("p", 2, ADA, 1)]).await;
    assert_eq!(world.used().await, [(Uuid::nil(), 2), (ADA, 1)]);
}

#[tokio::test]
async fn usage_is_listed_by_month_and_user_in_pages() {
    let world = World::new().await;
    let admin = world.admin().await;
    let admin = Uuid::try_parse(&admin.owner_id).unwrap();
    let next = Item {
        month: month("2027-02"),
        ..calls("p", 3, ADA, 9)
    };
    world
        .reports(&[calls("p", 1, admin, 3), calls("p", 2, ADA, 5), next])
        .await;
    let asked = |user| Asked {
        first: month(NOW),
        last: month("2027-02"),
        user,
    };
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let listed = world.auth.list_usage(&asked(None), &token, 1).await;
        let (rows, next) = listed.unwrap();
        assert_eq!(rows.len(), 1);
        let row = &rows[0].row;
        seen.push((
            row.month.to_string(),
            row.username.clone(),
            row.amounts.of(Calls),
        ));
        if next.is_empty() {
            break;
        }
        token = next;
    }
    let row = |month: &str, name: &str, calls| (month.to_owned(), name.to_owned(), calls);
    let all = [row(NOW, "", 5), row(NOW, "admin", 3), row("2027-02", "", 9)];
    assert_eq!(seen, all);
    let named = world.auth.user_named("admin").await.unwrap();
    let (rows, _) = world
        .auth
        .list_usage(&asked(Some(named)), "", 0)
        .await
        .unwrap();
    assert_eq!((rows.len(), rows[0].row.amounts.of(Calls)), (1, 3));
    let (rows, next) = world
        .auth
        .list_usage(&asked(Some(ADA)), "", 1)
        .await
        .unwrap();
    assert_eq!((rows.len(), next.is_empty()), (1, false));
    let (rows, next) = world
        .auth
        .list_usage(&asked(Some(ADA)), &next, 1)
        .await
        .unwrap();
    assert_eq!((rows[0].row.amounts.of(Calls), next.is_empty()), (9, true));
    for bad in [
        "x",
        "2027-01",
        "2027-01_x",
        "2027-13_00000000-0000-0000-0000-000000000001",
    ] {
        assert!(
            world.auth.list_usage(&asked(None), bad, 1).await.is_err(),
            "{bad}"
        );
    }
    assert!(world.auth.user_named("nobody").await.is_err());
}

#[tokio::test]
async fn sources_that_are_idle_for_long_are_forgotten() {
    let world = World::new().await;
    world.reports(&[calls("old", 1, ADA, 1)]).await;
    world.clock.advance(REMEMBERED + Duration::from_secs(1));
    world.reports(&[calls("new", 1, ADA, 1)]).await;
    let mut db = world.auth.store.read("test");
    assert_eq!(store::counted(&mut db, "automl/old").await.unwrap(), 0);
    assert_eq!(store::counted(&mut db, "automl/new").await.unwrap(), 1);
}

#[tokio::test]
async fn reports_of_many_at_once_lose_nothing() {
    let world = World::new().await;
    let reports = (0..20).map(|n: i64| {
        let auth = world.auth.clone();
        async move {
            let items = vec![
                calls(&format!("p{}", n % 10), 1, ADA, 1),
                calls("shared", n, BOB, 1),
            ];
            auth.count_usage("automl", &report(items)).await.unwrap();
        }
    });
    futures_util::future::join_all(reports).await;
    let used = world.used().await;
    assert_eq!(used[0], (ADA, 10));
    assert!(
        used[1].1 <= 19,
        "what comes after a larger number is known already"
    );
}

#[tokio::test]
async fn whoever_knows_of_a_later_database_than_this_backup_learns_all_totals_of_it() {
    let world = World::new().await;
    let before = world
        .reports(&[calls("p", 1, ADA, 3), calls("q", 1, BOB, 5)])
        .await;
    let knows = |after| Report {
        after,
        ..report(Vec::new())
    };
    let asked = async |after| {
        world
            .auth
            .count_usage("automl", &knows(after))
            .await
            .unwrap()
    };
    assert!(asked(before.version).await.totals.is_empty());
    let ahead = asked(before.version + 900).await;
    assert_eq!((ahead.totals.len(), ahead.version), (2, before.version));
    assert!(asked(ahead.version).await.totals.is_empty());
}

#[tokio::test]
async fn what_a_backup_has_not_counted_is_counted_once_it_is_sent_again() {
    let world = World::new().await;
    // The process was told that its first 80 items are counted, and sends on. The backup knows of none of them.
    let late = [calls("p", 79, ADA, 3), calls("p", 81, ADA, 4)];
    assert_eq!(world.reports(&late).await.counted, 81);
    assert_eq!(world.reports(&late).await.counted, 81);
    assert_eq!(world.used().await, [(ADA, 7)]);
}
