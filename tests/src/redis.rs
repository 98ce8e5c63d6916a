//! A Redis server of a test's own: killed, frozen and emptied as the test wants it.

use crate::{
    fleet::free_addr,
    process::Started,
    test_ca::{Leaf, TestCa},
};
use rcgen::SanType;
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::PrivateKeyDer;
use std::{
    fs::File,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use tars_certs::secret;
use tars_runtime::config;
use tempfile::TempDir;

/// The environment variable that names the program, as `cargo xtask test` sets it.
pub const PROGRAM: &str = "TARS_TEST_REDIS_SERVER";

/// A server behind a Unix socket, and by TLS too where a test asks for it. It keeps nothing on disk, and
/// ends (SIGKILL) when this is dropped.
#[derive(Debug)]
pub struct Redis {
    dir: TempDir,
    options: Vec<String>,
    process: Option<Started>,
}

impl Redis {
    /// Starts a server without a password.
    ///
    /// # Panics
    ///
    /// If [`PROGRAM`] does not name a program that serves.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts a server, where [`PROGRAM`] is set.
    pub fn available() -> Option<Self> {
        std::env::var_os(PROGRAM).map(|_| Self::start())
    }

    /// Starts a server with further options.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub fn with(options: &[&str]) -> Self {
        let mut this = Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            process: None,
        };
        this.start_again();
        this
    }

    /// Starts a server that takes TLS with certificates of `ca` alone, and the address of its listener.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub fn with_tls(ca: &TestCa, dir: &Path) -> (Self, std::net::SocketAddr) {
        let addr = free_addr();
        let san = SanType::IpAddress(addr.ip());
        let leaf = ca.leaf(|p| {
            p.subject_alt_names = vec![san];
            p.extended_key_usages
                .push(rcgen::ExtendedKeyUsagePurpose::ServerAuth);
        });
        let (certificate, key) = write_leaf(dir, "server", &leaf);
        let root = write_root(dir, "root.crt", ca);
        let port = addr.port().to_string();
        let text = |path: &Path| path.display().to_string();
        let (certificate, key, root) = (text(&certificate), text(&key), text(&root));
        let this = Self::with(&[
            "--bind",
            "127.0.0.1",
            "--tls-port",
            &port,
            "--tls-cert-file",
            &certificate,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &root,
        ]);
        (this, addr)
    }

    /// Starts the server where it was.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub fn start_again(&mut self) {
        let program = std::env::var_os(PROGRAM).expect("the program is named in the environment");
        std::fs::remove_file(self.socket()).ok();
        let log = File::create(self.dir.path().join("log")).expect("a log file");
        let mut command = Command::new(program);
        command.args(["--port", "0", "--save", "", "--appendonly", "no"]);
        command.arg("--unixsocket").arg(self.socket());
        command.arg("--dir").arg(self.dir.path());
        command.args(&self.options).stdin(Stdio::null()).stdout(log);
        self.process = Some(Started::new(&mut command));
        self.wait_until_it_serves();
    }

    fn wait_until_it_serves(&self) {
        let started = tokio::time::Instant::now();
        while UnixStream::connect(self.socket()).is_err() {
            let log = || std::fs::read_to_string(self.dir.path().join("log"));
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "Redis does not serve: {}",
                log().unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    /// What a process needs in its configuration to use the server.
    pub fn settings(&self) -> config::Redis {
        config::Redis {
            url: Some(format!("unix://{}", self.socket().display())),
            ..config::Redis::default()
        }
    }

    /// SIGKILL; returns once the server is gone.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// SIGSTOP: connections stay open, and nothing is answered.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("the server runs");
        let id = i32::try_from(process.id()).expect("a process id");
        let id = Pid::from_raw(id).expect("a process id");
        kill_process(id, signal).expect("the process is a child");
    }

    /// Deletes everything, and closes the connections of every client.
    ///
    /// # Panics
    ///
    /// If the server needs a password, or does not respond.
    pub fn flush(&self) {
        let mut stream = UnixStream::connect(self.socket()).expect("the server listens");
        let commands = b"FLUSHALL\r\nSCRIPT FLUSH\r\nCLIENT KILL TYPE pubsub\r\nQUIT\r\n";
        stream.write_all(commands).expect("a connection");
        let mut responses = String::new();
        stream.read_to_string(&mut responses).expect("responses");
        assert!(!responses.contains('-'), "{responses}");
    }
}

/// Writes the certificate of an authority as PEM.
///
/// # Panics
///
/// If the directory cannot be written to.
pub fn write_root(dir: &Path, name: &str, ca: &TestCa) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, pem("CERTIFICATE", &ca.der)).expect("a writable directory");
    path
}

/// Writes a leaf's chain and its key as PEM, for the owner alone.
///
/// # Panics
///
/// If the directory cannot be written to.
pub fn write_leaf(dir: &Path, name: &str, (chain, key): &Leaf) -> (PathBuf, PathBuf) {
    let PrivateKeyDer::Pkcs8(key) = key else {
        panic!("the key is in PKCS #8");
    };
    let chain: String = chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
    let key = pem("PRIVATE KEY", key.secret_pkcs8_der());
    let write = |extension: &str, text: String| {
        let path = dir.join(format!("{name}.{extension}"));
        secret::write(&path, text.as_bytes()).expect("a writable directory");
        path
    };
    (write("crt", chain), write("key", key))
}

fn pem(label: &str, der: &[u8]) -> String {
    pem::encode(&pem::Pem::new(label, der))
}
