//! What a statement reads from end to end, as the engine plans it.
//!
//! A table that only grows must not be scanned by work that is repeated. Engines scan small tables whatever
//! indexes there are, so that the plans are those that hold once a table is large: PostgreSQL is asked to
//! avoid scans, SQLite never looks at the number of rows of a database that was not analyzed.

use super::{Db, DbError, Fetch, Query, Row, connection::Connection, pools::Pools};
use sqlx::{AssertSqlSafe, Executor, Row as _};
use std::collections::BTreeSet;

impl Db {
    /// Plans a statement without running it. Returns the lines of the plan that read a table, or an index of
    /// all of its rows, from end to end. An index that was made for some rows alone may be read as a whole.
    ///
    /// # Errors
    ///
    /// [`DbError::Failed`] where the engine does not understand the statement.
    pub async fn scans(&self, text: &str) -> Result<Vec<String>, DbError> {
        let partial = self.partial_indexes().await?;
        let is_partial = |line: &str| {
            line.split_once("USING INDEX ")
                .or_else(|| line.split_once("USING COVERING INDEX "))
                .or_else(|| line.split_once(" using "))
                .or_else(|| line.split_once("Bitmap Index Scan on "))
                .and_then(|(_, rest)| rest.split_whitespace().next())
                .is_some_and(|index| partial.contains(index))
        };
        let mut scans = match &self.pools {
            Pools::Sqlite { .. } => sqlite_scans(&self.plan(text).await?),
            Pools::Postgres { .. } => postgres_scans(&self.plan(text).await?),
        };
        scans.retain(|line| !is_partial(line));
        Ok(scans)
    }

    /// The indexes that leave rows out.
    async fn partial_indexes(&self) -> Result<BTreeSet<String>, DbError> {
        const SQLITE: &str =
            "SELECT name FROM sqlite_master WHERE type = 'index' AND sql LIKE '% WHERE %'";
        const POSTGRES: &str = "SELECT CAST(indexname AS TEXT) AS name FROM pg_indexes \
                                WHERE schemaname = current_schema() AND indexdef LIKE '% WHERE %'";
        let query = Query::new(self.pools.text(SQLITE, POSTGRES));
        let rows = self.read("db.indexes").rows(query).await?;
        rows.iter().map(|row: &Row| row.get("name")).collect()
    }

    /// The lines of the plan.
    async fn plan(&self, text: &str) -> Result<Vec<String>, DbError> {
        match &self.pools {
            Pools::Sqlite { reader, .. } => {
                let mut connection = Connection::acquire(reader).await?;
                let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {text}"));
                let rows = sqlx::query(explain).fetch_all(&mut *connection).await?;
                let details = rows.iter().map(|row| row.try_get("detail"));
                Ok(details.collect::<Result<_, _>>()?)
            }
            Pools::Postgres { reader, .. } => {
                let mut connection = Connection::acquire(reader).await?;
                // The values of parameters must not change the plan.
                let explain = AssertSqlSafe(format!(
                    "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
                     PREPARE planned AS {text}; EXPLAIN (COSTS OFF) EXECUTE planned{}; \
                     DEALLOCATE planned; RESET plan_cache_mode; RESET enable_seqscan",
                    nulls(text)
                ));
                let rows = connection.fetch_all(sqlx::raw_sql(explain)).await?;
                let lines = rows.iter().map(|row| row.try_get(0));
                Ok(lines.collect::<Result<_, _>>()?)
            }
        }
    }
}

/// A NULL for each parameter of a statement, in parentheses where there is one.
fn nulls(text: &str) -> String {
    let numbers = text.split('$').skip(1).filter_map(|rest| {
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
        digits?.parse::<usize>().ok()
    });
    match numbers.max() {
        None => String::new(),
        Some(count) => format!("({})", vec!["NULL"; count].join(", ")),
    }
}

/// A line names what is scanned, or searched by an index.
fn sqlite_scans(plan: &[String]) -> Vec<String> {
    let of_table = |line: &&String| {
        line.strip_prefix("SCAN ").is_some_and(|scanned| {
            scanned != "CONSTANT ROW" && !scanned.starts_with('(') && !scanned.contains("-ROW")
        })
    };
    plan.iter().filter(of_table).cloned().collect()
}

/// A line is a node, or indented below its node and tells more of it: an index is searched where that has a
/// condition.
fn postgres_scans(plan: &[String]) -> Vec<String> {
    let mut scans = Vec::new();
    for (at, line) in plan.iter().enumerate() {
        let node = line.trim_start().trim_start_matches("->").trim_start();
        if node.starts_with("Seq Scan on ") {
            scans.push(node.to_owned());
        }
        let is_index_scan = node.starts_with("Index ") || node.starts_with("Bitmap Index Scan on ");
        if !is_index_scan || !node.contains("Scan") {
            continue;
        }
        let details = plan[at + 1..].iter().take_while(|l| !l.contains("->"));
        if !details.into_iter().any(|l| l.contains("Index Cond:")) {
            scans.push(node.to_owned());
        }
    }
    scans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(plan: &str) -> Vec<String> {
        plan.lines().map(str::to_owned).collect()
    }

    #[test]
    fn scans_are_found_in_the_plans_of_either_engine() {
        let sqlite = "SEARCH a USING INDEX a_by_b (b=?)\nSCAN c\nSCAN d USING INDEX d_by_e\nSCAN CONSTANT ROW";
        assert_eq!(
            sqlite_scans(&lines(sqlite)),
            ["SCAN c", "SCAN d USING INDEX d_by_e"]
        );
        let postgres = "Nested Loop\n  ->  Seq Scan on c\n        Filter: (x = $1)\n  \
                        ->  Index Scan using d_by_e on d\n        Filter: (y = $2)\n  \
                        ->  Bitmap Heap Scan on a\n        Recheck Cond: (b = $3)\n        \
                        ->  Bitmap Index Scan on a_by_b\n              Index Cond: (b = $3)\n  \
                        ->  Index Only Scan Backward using f_pkey on f\n        Index Cond: (id < $1)";
        assert_eq!(
            postgres_scans(&lines(postgres)),
            ["Seq Scan on c", "Index Scan using d_by_e on d"]
        );
    }

    #[test]
    fn each_parameter_is_given_a_value() {
        assert_eq!(nulls("SELECT a FROM b"), "");
        assert_eq!(
            nulls("SELECT a FROM b WHERE c = $12 OR $2 IS NULL"),
            format!("({})", ["NULL"; 12].join(", "))
        );
    }
}
