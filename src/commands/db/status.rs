//! `tars db status`.

use super::size;
use crate::app::{Service, migrations, place_of};
use crate::commands::output;
use serde_json::{Value, json};
use std::process::ExitCode;
use tars_runtime::{
    config::Config,
    db::{Db, DbError, Migration, Place, Schema, Table},
};

/// What is known of a service's database.
struct Status {
    service: Service,
    engine: &'static str,
    place: String,
    known: i64,
    found: Result<Option<Found>, DbError>,
}

/// What a database that is there has.
struct Found {
    schema: Schema,
    tables: Vec<Table>,
    bytes: i64,
}

/// Prints the status of all databases; fails where one cannot be used.
pub(super) async fn show(config: &Config, json: bool) -> ExitCode {
    let mut all = Vec::new();
    for service in Service::ALL {
        if let Some(migrations) = migrations(*service) {
            all.push(inspect(config, *service, migrations).await);
        }
    }
    match json {
        true => say!("{:#}", Value::from_iter(all.iter().map(Status::to_json))),
        false => print(&all),
    }
    let is_usable =
        |status: &Status| matches!(&status.found, Ok(Some(found)) if found.is_current());
    ExitCode::from(u8::from(!all.iter().all(is_usable)))
}

async fn inspect(config: &Config, service: Service, migrations: &[Migration]) -> Status {
    let known = migrations.last().map_or(0, Migration::version);
    let place = place_of(config, service);
    let (engine, shown) = match &place {
        Ok(Place::File(file)) => ("sqlite", file.display().to_string()),
        Ok(Place::Server { server, .. }) => (
            "postgresql",
            format!(
                "{}_{} in {server}",
                config.database.schema_prefix,
                service.as_str()
            ),
        ),
        Err(_) => ("postgresql", String::new()),
    };
    let found = match place {
        Ok(place) => find(place, migrations).await,
        Err(e) => Err(e),
    };
    Status {
        service,
        engine,
        place: shown,
        known,
        found,
    }
}

/// What is in a database; `None` where there is none.
async fn find(place: Place, migrations: &[Migration]) -> Result<Option<Found>, DbError> {
    if place.is_absent() {
        return Ok(None);
    }
    let db = Db::attach(&place).await?;
    let found = async {
        let schema = db.schema(migrations).await?;
        let (tables, bytes) = (db.tables().await?, db.bytes().await?);
        Ok((schema.applied > 0).then_some(Found {
            schema,
            tables,
            bytes,
        }))
    };
    let found = found.await;
    db.close().await;
    found
}

impl Found {
    fn is_current(&self) -> bool {
        self.schema.pending.is_empty()
    }
}

impl Status {
    fn state(&self) -> String {
        match &self.found {
            Ok(Some(found)) if found.is_current() => "current".to_owned(),
            Ok(Some(found)) => {
                let pending = found.schema.pending.len();
                format!("older: {pending} pending, run `tars db migrate`")
            }
            Ok(None) => "absent".to_owned(),
            Err(e) => e.to_string(),
        }
    }

    fn to_json(&self) -> Value {
        let mut status = json!({
            "service": self.service.as_str(),
            "engine": self.engine,
            "place": self.place,
            "known_schema": self.known,
            "state": self.state(),
        });
        if let Ok(Some(found)) = &self.found {
            let tables = found.tables.iter().map(|t| (t.name.clone(), t.rows.into()));
            status["schema"] = found.schema.applied.into();
            status["pending"] = found.schema.pending.clone().into();
            status["tables"] = Value::Object(tables.collect());
            status["bytes"] = found.bytes.into();
        }
        status
    }

    fn cells(&self) -> Vec<String> {
        let (schema, rows, bytes) = match &self.found {
            Ok(Some(found)) => (
                format!("{} of {}", found.schema.applied, self.known),
                found.tables.iter().map(|t| t.rows).sum::<i64>().to_string(),
                size(found.bytes.unsigned_abs()),
            ),
            _ => (String::new(), String::new(), String::new()),
        };
        let state = self.state();
        let (service, engine) = (self.service.as_str().to_owned(), self.engine.to_owned());
        vec![service, engine, schema, rows, bytes, state]
    }
}

fn print(all: &[Status]) {
    let rows: Vec<_> = all.iter().map(Status::cells).collect();
    output::table(
        &["service", "engine", "schema", "rows", "size", "state"],
        &rows,
    );
    for status in all {
        say!("\n{}: {}", status.service.as_str(), status.place);
        let tables = status
            .found
            .iter()
            .flatten()
            .flat_map(|found| &found.tables);
        for table in tables {
            say!("  {:<28} {:>10}", table.name, table.rows);
        }
    }
}
