//! Several replicas of the mesh on one machine, for development and tests: a supervisor process, and a
//! process for each replica. A replica is a whole mesh, with a data directory and addresses of its own;
//! what replicas share is the database server and, where it is set, Redis.
//!
//! Replica 1 starts alone, so that what is made once (schemas, the authority, the first administrator) is
//! made by one process. A replica that ends is started again. The replicas end with the supervisor, however
//! that ends: each reads its standard input, which closes then.

mod child;
mod plan;

use super::{
    DirLock, Ready, Service, StartError, data_dir::check, files::RuleFiles, password_file,
    ready::Replica as Listed,
};
use child::{Child, Event};
use plan::Plan;
pub(crate) use plan::data_dir;
use std::{
    future::pending,
    path::{Path, PathBuf},
    time::Duration,
};
use tars_certs::{Authority, ca::Contents};
use tars_runtime::{backoff::Backoff, config::Config, seeds::Seeds};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

/// How soon a replica that ended is started again.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The same for one that ends again and again.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A replica that was ready for so long has recovered from what ended it before.
const RECOVERED: Duration = Duration::from_secs(60);

/// The replicas that this process supervises.
pub(crate) struct Replicas {
    data: PathBuf,
    replicas: Vec<Replica>,
    events: mpsc::Receiver<Event>,
    report: mpsc::Sender<Event>,
    _lock: DirLock,
}

struct Replica {
    plan: Plan,
    state: State,
    backoff: Backoff,
}

enum State {
    Ended {
        restart_at: Option<Instant>,
    },
    Starting(Child),
    Ready {
        child: Child,
        ready: Box<Ready>,
        since: Instant,
    },
}

impl Replica {
    fn new(plan: Plan) -> Self {
        Self {
            plan,
            state: State::Ended { restart_at: None },
            backoff: Backoff::new(FIRST_PAUSE, MAX_PAUSE).with_jitter(Seeds::system()),
        }
    }

    fn start(&mut self, report: &mpsc::Sender<Event>) -> Result<(), StartError> {
        self.state = State::Starting(Child::spawn(&self.plan, report.clone())?);
        Ok(())
    }

    fn child(&mut self) -> Option<&mut Child> {
        match &mut self.state {
            State::Starting(child) | State::Ready { child, .. } => Some(child),
            State::Ended { .. } => None,
        }
    }

    fn ready(&self) -> Option<(&Child, &Ready)> {
        match &self.state {
            State::Ready { child, ready, .. } => Some((child, ready)),
            _ => None,
        }
    }

    /// Records that the process serves.
    fn record_ready(&mut self, ready: Box<Ready>) {
        let ended = State::Ended { restart_at: None };
        self.state = match std::mem::replace(&mut self.state, ended) {
            State::Starting(child) => State::Ready {
                child,
                ready,
                since: Instant::now(),
            },
            other => other,
        };
    }

    /// Records that the process ended; returns when it is started again.
    fn record_end(&mut self) -> Duration {
        if let State::Ready { since, .. } = &self.state
            && since.elapsed() >= RECOVERED
        {
            self.backoff.reset();
        }
        let pause = self.backoff.next_delay();
        self.state = State::Ended {
            restart_at: Some(Instant::now() + pause),
        };
        pause
    }

    fn restart_at(&self) -> Option<Instant> {
        match self.state {
            State::Ended { restart_at } => restart_at,
            _ => None,
        }
    }
}

impl Replicas {
    /// Starts `count` replicas. Returns once all of them serve.
    pub(crate) async fn start(config: &Config, count: u32) -> Result<Self, StartError> {
        // Each replica reads them for itself.
        RuleFiles::read(config)?;
        let lock = DirLock::whole(&config.data.dir)?;
        check(config, Service::ALL)?;
        hand_over_authority(&config.data.dir)?;
        let plans = plan::plans(config, count)?;
        let (report, events) = mpsc::channel(plans.len());
        let mut this = Self {
            data: config.data.dir.clone(),
            replicas: plans.into_iter().map(Replica::new).collect(),
            events,
            report,
            _lock: lock,
        };
        match this.start_all().await {
            Ok(()) => Ok(this),
            Err(error) => {
                this.stop().await;
                Err(error)
            }
        }
    }

    async fn start_all(&mut self) -> Result<(), StartError> {
        let (first, others) = self.replicas.split_at_mut(1);
        for replica in first {
            replica.start(&self.report)?;
            Self::until_ready(&mut self.events, std::slice::from_mut(replica)).await?;
        }
        keep_password(&self.data)?;
        for replica in &mut *others {
            replica.start(&self.report)?;
        }
        Self::until_ready(&mut self.events, &mut self.replicas).await
    }

    /// Waits until all of `replicas` serve. None of them is started again here: what ends one at its
    /// first start will end it at the next, too.
    async fn until_ready(
        events: &mut mpsc::Receiver<Event>,
        replicas: &mut [Replica],
    ) -> Result<(), StartError> {
        while replicas.iter().any(|replica| replica.ready().is_none()) {
            let Some(event) = events.recv().await else {
                break;
            };
            let replica = replicas
                .iter_mut()
                .find(|r| r.plan.number == event.number());
            match (event, replica) {
                (Event::Ready(_, ready), Some(replica)) => replica.record_ready(ready),
                (Event::Ended(number, status), Some(replica)) => {
                    replica.state = State::Ended { restart_at: None };
                    return Err(StartError::Replica { number, status });
                }
                (_, None) => {}
            }
        }
        Ok(())
    }

    /// What a user needs to reach the mesh: the addresses of all replicas that serve, and in the first
    /// place those of the one with the lowest number. `None` while none serves.
    pub(crate) fn ready(&self) -> Option<Ready> {
        let serving = self.replicas.iter().filter_map(|replica| {
            let (child, ready) = replica.ready()?;
            Some(Listed::new(
                replica.plan.number,
                child.id(),
                replica.plan.data(),
                ready,
            ))
        });
        let (_, first) = self.replicas.iter().find_map(Replica::ready)?;
        Some(Ready {
            admin_password_file: password_file(&self.data),
            replicas: serving.collect(),
            ..first.clone()
        })
    }

    /// Starts replicas again that end. Returns when one has ended or serves again, for the caller to
    /// look at [`ready`](Self::ready). May be dropped and called again.
    pub(crate) async fn supervise(&mut self) {
        loop {
            let due = self.replicas.iter().filter_map(Replica::restart_at).min();
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => return self.record(event),
                    None => return pending().await,
                },
                () = until(due) => self.restart_due(),
            }
        }
    }

    fn record(&mut self, event: Event) {
        let number = event.number();
        let Some(replica) = self.replicas.iter_mut().find(|r| r.plan.number == number) else {
            return;
        };
        match event {
            Event::Ready(_, ready) => {
                replica.record_ready(ready);
                tracing::info!(replica = number, "the replica serves again");
            }
            Event::Ended(_, status) => {
                let pause = replica.record_end();
                tracing::error!(
                    replica = number,
                    status,
                    ?pause,
                    "a replica ended; it is started again"
                );
            }
        }
    }

    fn restart_due(&mut self) {
        let now = Instant::now();
        let due = |replica: &&mut Replica| replica.restart_at().is_some_and(|at| at <= now);
        for replica in self.replicas.iter_mut().filter(due) {
            if let Err(error) = replica.start(&self.report) {
                let pause = replica.record_end();
                tracing::error!(replica = replica.plan.number, %error, ?pause, "a replica cannot be started");
            }
        }
    }

    /// Drains every replica. Returns when all processes have ended.
    pub(crate) async fn stop(&mut self) {
        for replica in &mut self.replicas {
            if let Some(child) = replica.child() {
                child.stop();
            }
        }
        while self
            .replicas
            .iter_mut()
            .any(|replica| replica.child().is_some())
        {
            let Some(event) = self.events.recv().await else {
                return;
            };
            if let Event::Ended(number, _) = event {
                let ended = self.replicas.iter_mut().find(|r| r.plan.number == number);
                if let Some(replica) = ended {
                    replica.state = State::Ended { restart_at: None };
                }
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

/// Moves the first administrator's password from replica 1, which made it, to where it is without
/// replicas.
fn keep_password(data: &Path) -> Result<(), StartError> {
    let (made, kept) = (password_file(&data_dir(data, 1)), password_file(data));
    match std::fs::rename(&made, &kept) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(StartError::file(&made, e)),
        _ => Ok(()),
    }
}

/// Gives replica 1 the authority of the data directory, which is what a database without one begins with:
/// after a move from SQLite, the certificates of the mesh stay good.
fn hand_over_authority(data: &Path) -> Result<(), StartError> {
    let (whole, first) = (data.join("ca"), plan::data_dir(data, 1).join("ca"));
    if Authority::exists(&whole) && !Authority::exists(&first) {
        Contents::read(&whole)?.restore(&first)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_certs::ca::Lifetimes;

    #[test]
    fn replica_1_begins_with_the_authority_of_the_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = plan::data_dir(dir.path(), 1).join("ca");
        hand_over_authority(dir.path()).unwrap();
        assert!(!Authority::exists(&first), "there is none");
        let made = |at: u64| {
            let now = Duration::from_secs(1_800_000_000 + at);
            Contents::create("tars.local", Lifetimes::default(), now).unwrap()
        };
        let contents = made(0);
        contents.restore(&dir.path().join("ca")).unwrap();
        hand_over_authority(dir.path()).unwrap();
        assert_eq!(Contents::read(&first).unwrap(), contents);
        // The one that a replica has is left alone.
        std::fs::remove_dir_all(dir.path().join("ca")).unwrap();
        made(1).restore(&dir.path().join("ca")).unwrap();
        hand_over_authority(dir.path()).unwrap();
        assert_eq!(Contents::read(&first).unwrap(), contents);
    }
}
