use super::*;
use std::cell::Cell;
use tars_runtime::db::DbError;
use tokio::time::Instant;

/// Fails a number of times before it succeeds. Returns the result and the number of attempts.
async fn failing(
    times: u32,
    error: fn() -> OrchestrationError,
) -> (Result<(), OrchestrationError>, u32) {
    let tries = Cell::new(0);
    let end = || {
        let n = tries.replace(tries.get() + 1);
        async move { if n < times { Err(error()) } else { Ok(()) } }
    };
    let ended = retry_while_database_is_busy(end).await;
    (ended, tries.get())
}

fn busy() -> OrchestrationError {
    DbError::Unavailable("busy".to_owned()).into()
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_run_is_retried_while_the_database_is_busy() {
    let begun = Instant::now();
    let (ended, tries) = failing(20, busy).await;
    assert!(ended.is_ok() && tries == 21);
    let waited = begun.elapsed();
    assert!(
        waited > 11 * LONGEST_PAUSE && waited < PATIENCE,
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn retrying_the_end_of_a_run_is_bounded() {
    let begun = Instant::now();
    let (ended, _) = failing(u32::MAX, busy).await;
    assert!(matches!(ended, Err(OrchestrationError::Store(_))));
    let waited = begun.elapsed();
    assert!(
        waited >= PATIENCE && waited <= PATIENCE + LONGEST_PAUSE,
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn permanent_failures_are_not_retried() {
    let broken = || DbError::Failed("no row".to_owned()).into();
    let (ended, tries) = failing(u32::MAX, broken).await;
    assert!(ended.is_err() && tries == 1);
}
