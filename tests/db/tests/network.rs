//! A server behind a network, or a proxy, that fails in other ways than by closing connections.

#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tars_certs::secret;
use tars_runtime::{
    config::Database,
    db::{Db, DbError, Fetch, Isolation, Migration, Place, Query, Server},
};
use tars_test_db::by_tls;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

const MIGRATIONS: &[Migration] = &[Migration::new(
    1,
    "samples",
    "CREATE TABLE samples (id BIGINT PRIMARY KEY, bytes BYTEA NOT NULL)",
)];
const PATIENCE: Duration = Duration::from_secs(60);
const PUT: &str = "INSERT INTO samples (id, bytes) VALUES ($1, $2)";
const COUNT: &str = "SELECT COUNT(*) AS n FROM samples";

/// What a proxy does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Passes everything on.
    Pass,
    /// Closes each new connection, once it has said something.
    Close,
    /// Takes new connections, and says nothing.
    Silent,
}

/// A proxy before the server.
struct Proxy {
    port: u16,
    mode: watch::Sender<Mode>,
    /// Connections of an earlier generation stay open, and nothing passes any more.
    generation: watch::Sender<u64>,
    accepted: Arc<AtomicUsize>,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    async fn start(upstream: u16, mode: Mode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mode, generation) = (watch::Sender::new(mode), watch::Sender::new(0));
        let accepted = Arc::<AtomicUsize>::default();
        let (modes, generations, count) = (
            mode.subscribe(),
            generation.subscribe(),
            Arc::clone(&accepted),
        );
        let accepting = async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let mode = *modes.borrow();
                tokio::spawn(serve(stream, upstream, mode, generations.clone()));
            }
        };
        Self {
            port,
            mode,
            generation,
            accepted,
            _accepting: AbortOnDropHandle::new(tokio::spawn(accepting)),
        }
    }

    /// Before the server of the tests.
    async fn before(server: &Database) -> Self {
        let address = server.address().unwrap().unwrap();
        Self::start(address.port, Mode::Pass).await
    }

    fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Silences the connections that are open.
    fn silence(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    fn place(&self, server: &Database) -> Place {
        let address = server.address().unwrap().unwrap();
        let url = format!(
            "postgresql://{}@localhost:{}/{}?sslmode=verify-full",
            address.user, self.port, address.database
        );
        let settings = Database {
            url: Some(url),
            ..server.clone()
        };
        Place::Server {
            server: Server::of(&settings).unwrap().unwrap(),
            service: "network".to_owned(),
        }
    }
}

async fn serve(mut client: TcpStream, upstream: u16, mode: Mode, generation: watch::Receiver<u64>) {
    match mode {
        Mode::Silent => std::future::pending().await,
        Mode::Close => {
            client.read_u8().await.ok();
        }
        Mode::Pass => {
            let mut server = TcpStream::connect(("127.0.0.1", upstream)).await.unwrap();
            let own = *generation.borrow();
            let (mut from_client, mut to_client) = client.split();
            let (mut from_server, mut to_server) = server.split();
            tokio::select! {
                () = pass(&mut from_client, &mut to_server, own, &generation) => {}
                () = pass(&mut from_server, &mut to_client, own, &generation) => {}
            }
        }
    }
}

async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    own: u64,
    generation: &watch::Receiver<u64>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let received = from.read(&mut buffer).await.unwrap_or(0);
        if *generation.borrow() > own {
            std::future::pending::<()>().await;
        }
        if received == 0 || to.write_all(&buffer[..received]).await.is_err() {
            return;
        }
    }
}

/// Settings of a server that is not there, behind a proxy.
fn unreachable(dir: &Path) -> Database {
    let root = dir.join("root.crt");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    secret::write_public(&root, made.cert.pem().as_bytes()).unwrap();
    Database {
        url: Some("postgresql://tars@localhost/none?sslmode=verify-full".to_owned()),
        root_certificate: Some(root),
        ..Database::default()
    }
}

async fn count(db: &Db) -> Result<i64, DbError> {
    db.read("test.count").value(Query::new(COUNT), "n").await
}

async fn put(db: &Db, id: i64, bytes: Vec<u8>) -> Result<(), DbError> {
    let mut tx = db.write("test.put", Isolation::Committed).await?;
    let put = Query::new(PUT).bind(id).bind(bytes);
    tx.execute(put).await?.one()?;
    tx.commit().await
}

#[tokio::test]
async fn connections_that_are_closed_at_once_are_an_unavailable_database() {
    let dir = tempfile::tempdir().unwrap();
    let server = unreachable(dir.path());
    let proxy = Proxy::start(0, Mode::Close).await;
    let place = proxy.place(&server);
    let refused = Db::open(&place, MIGRATIONS).await.unwrap_err();
    assert!(matches!(refused, DbError::Unavailable(_)), "{refused:?}");
    let before = proxy.accepted();
    let db = Db::attach(&place).await.unwrap();
    let refused = count(&db).await.unwrap_err();
    assert!(matches!(refused, DbError::Unavailable(_)), "{refused:?}");
    assert!(proxy.accepted() > before + 1, "it was tried again");
}

#[tokio::test]
async fn a_start_on_a_server_that_says_nothing_ends() {
    let dir = tempfile::tempdir().unwrap();
    let server = unreachable(dir.path());
    let proxy = Proxy::start(0, Mode::Silent).await;
    let opened = timeout(PATIENCE, Db::open(proxy.place(&server), MIGRATIONS));
    let refused = opened.await.expect("it gives up").unwrap_err();
    assert!(matches!(refused, DbError::Unavailable(_)), "{refused:?}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run by cargo xtask test"]
async fn work_goes_on_once_a_proxy_has_its_server_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = by_tls(dir.path());
    let proxy = Proxy::before(&server).await;
    let db = Db::open(proxy.place(&server), MIGRATIONS).await.unwrap();
    put(&db, 1, vec![1]).await.unwrap();
    proxy.set(Mode::Close);
    proxy.silence();
    let settled = tokio::spawn({
        let db = db.clone();
        async move { db.settled(|| count(&db), DbError::is_transient).await }
    });
    // It has met what a proxy without a server does, and has not given up.
    let before = proxy.accepted();
    let tried = async {
        while proxy.accepted() < before + 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, tried).await.unwrap();
    assert!(!settled.is_finished());
    proxy.set(Mode::Pass);
    assert_eq!(timeout(PATIENCE, settled).await.unwrap().unwrap(), Ok(1));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: run by cargo xtask test"]
async fn connections_that_go_silent_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let server = by_tls(dir.path());
    let proxy = Proxy::before(&server).await;
    let db = Db::open(proxy.place(&server), MIGRATIONS).await.unwrap();
    // Every place of both pools is taken by a connection.
    let (a, b) = tokio::join!(db.snapshot("test.a"), db.snapshot("test.b"));
    drop((a.unwrap(), b.unwrap()));
    let (a, b) = tokio::join!(put(&db, 1, vec![1]), put(&db, 2, vec![2]));
    a.and(b).unwrap();
    let mut open = db.write("test.open", Isolation::Committed).await.unwrap();
    proxy.silence();
    // More than the network takes before it waits for the other side.
    let large = Query::new(PUT).bind(3_i64).bind(vec![3; 32 << 20]);
    let (lost, first) = tokio::join!(open.execute(large), count(&db));
    for lost in [lost.map(|_| ()), first.map(|_| ())] {
        assert!(matches!(lost, Err(DbError::Unavailable(_))), "{lost:?}");
    }
    drop(open);
    let recovered = async {
        for id in 4..8 {
            while put(&db, id, vec![4]).await.is_err() {}
            while count(&db).await.is_err() {}
        }
    };
    timeout(PATIENCE, recovered)
        .await
        .expect("no place is lost");
    assert_eq!(count(&db).await, Ok(6));
}
