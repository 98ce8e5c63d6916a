//! Servers as processes: how they are started and ended, and what they use.

use crate::Failure;
use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tars_tests::memory;

/// A process that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts a program that prints its address as its first line, and returns that.
    pub(crate) fn start(command: &mut Command) -> Result<(Self, String), Failure> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("{program}: {e}"))?;
        let output = child.stdout.take();
        let process = Self { child };
        let mut line = String::new();
        BufReader::new(output.ok_or("no output")?).read_line(&mut line)?;
        match line.trim() {
            "" => Err(format!("{program} ended before it listened").into()),
            address => Ok((process, address.to_owned())),
        }
    }

    /// Starts a program whose address is known beforehand.
    pub(crate) fn start_quiet(command: &mut Command) -> Result<Self, Failure> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().map_err(|e| format!("{program}: {e}"))?;
        Ok(Self { child })
    }

    /// Its id and those of its children.
    fn family(&self) -> Vec<u32> {
        let own = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
        let children = children.unwrap_or_default();
        let children = children.split_whitespace().filter_map(|id| id.parse().ok());
        std::iter::once(own).chain(children).collect()
    }

    /// The CPU time that it and its children have used so far.
    pub(crate) fn cpu(&self) -> Result<Duration, Failure> {
        self.family().into_iter().map(cpu_of).sum()
    }

    /// The memory that it and its children have in use, in bytes: what they share is counted once each.
    pub(crate) fn resident(&self) -> Result<u64, Failure> {
        let each = self.family().into_iter();
        each.map(|id| Ok(memory::resident(id)?)).sum()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // nginx ends its workers on SIGTERM; the others have nothing to end.
        let pid = self.child.id().to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status();
        if !asked.is_ok_and(|status| status.success()) {
            self.child.kill().ok();
        }
        self.child.wait().ok();
    }
}

/// The CPU time of this process.
pub(crate) fn own_cpu() -> Result<Duration, Failure> {
    cpu_of(std::process::id())
}

/// The CPU time of the threads of a process, in nanoseconds from the scheduler: the ticks of `stat` are a hundredth of
/// a second. Threads that have ended are not in it.
fn cpu_of(id: u32) -> Result<Duration, Failure> {
    let mut total = 0;
    for thread in std::fs::read_dir(format!("/proc/{id}/task"))? {
        let Ok(text) = std::fs::read_to_string(thread?.path().join("schedstat")) else {
            continue;
        };
        let used = text.split(' ').next().ok_or("schedstat")?;
        total += used.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total))
}
