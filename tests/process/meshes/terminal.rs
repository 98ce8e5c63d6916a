//! What a person at a terminal types and sees.

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, tcgetattr},
};
use std::{
    fs,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Command, Stdio},
};
use tars_tests::process::Started;

/// A pseudo-terminal for a command: this test's end, and the command's.
pub(crate) struct Terminal(fs::File, OwnedFd);

impl Terminal {
    pub(crate) fn new() -> Self {
        let own = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&own).unwrap();
        unlockpt(&own).unwrap();
        let name = ptsname(&own, Vec::new()).unwrap().into_string().unwrap();
        let theirs = fs::File::options().read(true).write(true).open(name);
        Self(own.into(), theirs.unwrap().into())
    }

    pub(crate) fn start(&self, mut command: Command) -> Started {
        let end = || Stdio::from(self.1.try_clone().unwrap());
        Started::new(command.stdin(end()).stdout(end()).stderr(end()))
    }

    pub(crate) fn echoes(&self) -> bool {
        let modes = tcgetattr(&self.1).unwrap().local_modes;
        modes.contains(LocalModes::ECHO)
    }

    /// Reads until the terminal shows a text.
    pub(crate) fn shows(&mut self, text: &str) -> String {
        let mut shown = Vec::new();
        loop {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            shown.push(byte[0]);
            let so_far = String::from_utf8_lossy(&shown);
            if so_far.ends_with(text) {
                return so_far.into_owned();
            }
        }
    }

    pub(crate) fn types(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }
}
