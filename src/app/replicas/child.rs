//! The process of one replica, and the thread that waits for it.

use super::plan::Plan;
use crate::app::{Ready, StartError};
use parking_lot::Mutex;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use std::{
    io::{self, BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    thread,
};
use tars_runtime::config::ENV_PREFIX;
use tokio::sync::mpsc;

/// What happens to a replica's process.
#[derive(Debug)]
pub(super) enum Event {
    /// It serves.
    Ready(u32, Box<Ready>),
    /// It ended, with a status in words.
    Ended(u32, String),
}

impl Event {
    pub(super) fn number(&self) -> u32 {
        match self {
            Self::Ready(number, _) | Self::Ended(number, _) => *number,
        }
    }
}

/// A replica's process, which is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Child {
    process: Arc<Mutex<std::process::Child>>,
    id: u32,
    /// The replica stops when this is closed.
    stdin: Option<ChildStdin>,
}

impl Child {
    /// Starts the process of a replica. What happens to it is reported until it has ended.
    pub(super) fn spawn(plan: &Plan, report: mpsc::Sender<Event>) -> Result<Self, StartError> {
        let number = plan.number;
        let failed = |e| StartError::NotSpawned { number, source: e };
        let mut process = command(plan)?.spawn().map_err(failed)?;
        let (id, stdin, stdout) = (process.id(), process.stdin.take(), process.stdout.take());
        let process = Arc::new(Mutex::new(process));
        let this = Self {
            process: Arc::clone(&process),
            id,
            stdin,
        };
        thread::Builder::new()
            .name(format!("replica-{number}"))
            .spawn(move || follow(number, &process, stdout, &report))
            .map_err(failed)?;
        Ok(this)
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Lets the process drain and end.
    pub(super) fn stop(&mut self) {
        self.stdin = None;
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It fails where the process has ended.
        self.process.lock().kill().ok();
    }
}

/// The configuration is in the file as a whole: variables that are part of it would override it. The
/// process group of its own keeps a Ctrl-C of the terminal to the supervisor.
fn command(plan: &Plan) -> Result<Command, StartError> {
    let file = plan.save()?;
    let program = std::env::current_exe().map_err(|e| StartError::NotSpawned {
        number: plan.number,
        source: e,
    })?;
    let mut command = Command::new(program);
    command.args(["up", "--replica", &plan.number.to_string()]);
    command.arg("--config").arg(file);
    let configuring = std::env::vars_os().map(|(name, _)| name);
    for name in
        configuring.filter(|name| name.as_encoded_bytes().starts_with(ENV_PREFIX.as_bytes()))
    {
        command.env_remove(name);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.process_group(0);
    Ok(command)
}

/// Reports that the process serves, and that it ended.
fn follow(
    number: u32,
    process: &Mutex<std::process::Child>,
    stdout: Option<ChildStdout>,
    report: &mpsc::Sender<Event>,
) {
    // Nobody receives once the supervisor has stopped.
    if let Some(ready) = stdout.and_then(announced) {
        report
            .blocking_send(Event::Ready(number, Box::new(ready)))
            .ok();
    }
    let status = match ended(process) {
        Ok(status) => status,
        Err(e) => format!("unknown: {e}"),
    };
    report.blocking_send(Event::Ended(number, status)).ok();
}

/// What a replica prints once it serves: its ready file on one line.
fn announced(stdout: ChildStdout) -> Option<Ready> {
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}

/// Waits until the process has ended. The process is locked afterwards only, and stays a zombie until
/// then, so that it can be killed meanwhile and its id is not another process's.
fn ended(process: &Mutex<std::process::Child>) -> io::Result<String> {
    let id = i32::try_from(process.lock().id())
        .ok()
        .and_then(Pid::from_raw);
    let id = id.ok_or_else(|| io::Error::other("the process has no id"))?;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while let Err(e) = waitid(WaitId::Pid(id), options) {
        if e != rustix::io::Errno::INTR {
            return Err(e.into());
        }
    }
    Ok(process.lock().wait()?.to_string())
}
