//! `tars db migrate`.

use crate::{
    app::{DirLock, Service, StartError, migrations, place_of},
    commands::CommandError,
};
use serde_json::{Value, json};
use std::process::ExitCode;
use tars_runtime::{
    config::Config,
    db::{Db, DbError, Migration, Place},
};

/// What was done to a service's database.
struct Done {
    service: Service,
    /// The migrations that were applied; `None` where there is no database.
    applied: Option<Vec<i64>>,
    schema: i64,
}

/// Applies what is missing. Nothing is changed where one of the schemas is refused.
pub(super) async fn migrate(config: &Config, json: bool) -> Result<ExitCode, CommandError> {
    let mut config = config.clone();
    // What it is off for is this command.
    config.database.migrate = true;
    let on_server = config.database.is_server();
    if !on_server && !config.data.dir.is_dir() {
        let dir = config.data.dir.display();
        let text = format!("there is no data directory {dir}: name the mesh with --data-dir");
        return Err(CommandError::Failed(text));
    }
    let _lock = match on_server {
        true => None,
        false => Some(DirLock::whole(&config.data.dir)?),
    };
    let mut planned = Vec::new();
    for service in Service::ALL {
        if let Some(migrations) = migrations(*service) {
            let place = place_of(&config, *service).map_err(StartError::from)?;
            let missing = missing(&place, migrations)
                .await
                .map_err(failed(*service))?;
            planned.push((*service, place, migrations, missing));
        }
    }
    let mut all = Vec::new();
    for (service, place, migrations, missing) in planned {
        if missing.as_ref().is_some_and(|missing| !missing.is_empty()) {
            let db = Db::open(place, migrations).await.map_err(failed(service))?;
            db.close().await;
        }
        all.push(Done {
            service,
            applied: missing,
            schema: migrations.last().map_or(0, Migration::version),
        });
    }
    report(&all, json);
    Ok(ExitCode::SUCCESS)
}

fn failed(service: Service) -> impl Fn(DbError) -> CommandError {
    move |e| CommandError::Failed(format!("{}: {e}", service.as_str()))
}

/// The migrations that are to be applied; `None` where there is no file. A schema on a server is made.
async fn missing(place: &Place, migrations: &[Migration]) -> Result<Option<Vec<i64>>, DbError> {
    if place.is_absent() {
        return Ok(None);
    }
    let db = Db::attach(place).await?;
    let schema = db.schema(migrations).await;
    db.close().await;
    Ok(Some(schema?.pending))
}

fn report(all: &[Done], json: bool) {
    if json {
        let entry = |done: &Done| {
            json!({
                "service": done.service.as_str(),
                "applied": done.applied,
                "schema": done.applied.is_some().then_some(done.schema),
            })
        };
        say!("{:#}", Value::from_iter(all.iter().map(entry)));
        return;
    }
    for done in all {
        let (service, schema) = (done.service.as_str(), done.schema);
        match done.applied.as_deref() {
            None => say!("{service}: no database yet"),
            Some([]) => say!("{service}: nothing to do, the schema is at {schema}"),
            Some(migrations) => {
                let migrations: Vec<_> = migrations.iter().map(i64::to_string).collect();
                say!("{service}: applied {}", migrations.join(", "));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_in_use_are_left_alone_also_with_an_empty_url() {
        let dir = tempfile::tempdir().unwrap();
        let _mesh = DirLock::whole(dir.path()).unwrap();
        for url in [None, Some(String::new())] {
            let mut config = Config::default();
            config.data.dir = dir.path().to_owned();
            config.database.url = url.clone();
            let refused = migrate(&config, true).await;
            let is_locked = matches!(refused, Err(CommandError::Start(StartError::Locked { .. })));
            assert!(is_locked, "{url:?}");
        }
    }
}
