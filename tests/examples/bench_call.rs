//! A small unary call (`GetMe`, with a token) through the full stack, against the same handler on
//! bare tonic over tonic's own mTLS. Both servers run in this process; slices of load alternate,
//! so that both see the same machine. The client is tonic's channel for both.
//!
//! For a profiler, `--only=mesh` and `--only=baseline` load one of the two and nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tars_proto::auth::v1::{
    GetMeRequest, GetMeResponse, LoginRequest, auth_service_client::AuthServiceClient,
};
use tars_search::quantile;
use tars_tests::TestMesh;
use tokio::time::Instant;
use tonic::{
    Request, Response, Status,
    transport::{
        Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig,
    },
};

type Failure = Box<dyn std::error::Error>;

const WORKERS: usize = 64;
const PROFILED: Duration = Duration::from_secs(20);

/// The same answer as the mesh's, with nothing around it.
mod bare {
    use super::{GetMeRequest, GetMeResponse, Request, Response, Status};
    use tars_proto::auth::v1::{self as pb, auth_service_server::AuthService};

    #[derive(Debug, Clone)]
    pub(crate) struct Bare(pub(crate) GetMeResponse);

    #[tonic::async_trait]
    impl AuthService for Bare {
        async fn get_me(
            &self,
            _: Request<GetMeRequest>,
        ) -> Result<Response<GetMeResponse>, Status> {
            Ok(Response::new(self.0.clone()))
        }

        async fn login(
            &self,
            _: Request<pb::LoginRequest>,
        ) -> Result<Response<pb::LoginResponse>, Status> {
            Err(Status::unimplemented("not part of the baseline"))
        }

        async fn refresh(
            &self,
            _: Request<pb::RefreshRequest>,
        ) -> Result<Response<pb::RefreshResponse>, Status> {
            Err(Status::unimplemented("not part of the baseline"))
        }

        async fn logout(
            &self,
            _: Request<pb::LogoutRequest>,
        ) -> Result<Response<pb::LogoutResponse>, Status> {
            Err(Status::unimplemented("not part of the baseline"))
        }

        async fn change_password(
            &self,
            _: Request<pb::ChangePasswordRequest>,
        ) -> Result<Response<pb::ChangePasswordResponse>, Status> {
            Err(Status::unimplemented("not part of the baseline"))
        }
    }
}

#[derive(Default, Clone, Copy)]
struct Slice {
    calls: u64,
    wall: Duration,
    cpu: Duration,
}

/// CPU time of this process, user and system, from /proc: in ticks of a hundredth of a second.
fn cpu_time() -> Result<Duration, Failure> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let after = text.rsplit(") ").next().ok_or("stat")?;
    let fields: Vec<&str> = after.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 10))
}

async fn load(
    client: &AuthServiceClient<Channel>,
    token: &str,
    length: Duration,
) -> Result<Slice, Failure> {
    let calls = Arc::new(AtomicU64::new(0));
    let (started, cpu) = (Instant::now(), cpu_time()?);
    let end = started + length;
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..WORKERS {
        let (mut client, calls) = (client.clone(), Arc::clone(&calls));
        let bearer: tonic::metadata::MetadataValue<_> = format!("Bearer {token}").parse()?;
        workers.spawn(async move {
            while Instant::now() < end {
                let mut request = Request::new(GetMeRequest {});
                request
                    .metadata_mut()
                    .insert("authorization", bearer.clone());
                client.get_me(request).await?;
                calls.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<(), Status>(())
        });
    }
    while let Some(done) = workers.join_next().await {
        done??;
    }
    Ok(Slice {
        calls: calls.load(Ordering::Relaxed),
        wall: started.elapsed(),
        cpu: cpu_time()? - cpu,
    })
}

async fn connect(target: &str, tls: ClientTlsConfig) -> Result<Channel, Failure> {
    Ok(Endpoint::from_shared(format!("https://{target}"))?
        .tls_config(tls)?
        .tcp_nodelay(true)
        .connect()
        .await?)
}

fn median(values: Vec<f64>) -> f64 {
    quantile::median(values).expect("there is at least one round")
}

fn rate(slice: &Slice) -> f64 {
    slice.calls as f64 / slice.wall.as_secs_f64()
}

fn cpu_us(slice: &Slice) -> f64 {
    slice.cpu.as_secs_f64() * 1e6 / slice.calls as f64
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let has = |flag: &str| std::env::args().any(|a| a == flag);
    let only = ["mesh", "baseline"];
    let only = only.into_iter().find(|one| has(&format!("--only={one}")));
    let (rounds, length) = if has("--quick") {
        (5, Duration::from_millis(400))
    } else {
        (15, Duration::from_secs(1))
    };
    // One call in a hundred is traced, to a collector that is not there: exporting costs, too.
    let mut config = tars_tests::config();
    config.telemetry.sample_ratio = 0.01;
    config.telemetry.otlp_endpoint = Some("http://127.0.0.1:9".to_owned());
    config.limits.user_per_minute = u32::MAX / 8;
    config.limits.identity_per_minute = u32::MAX / 8;
    config.limits.flood_per_second = u32::MAX / 8;
    let mesh = TestMesh::with(config).await;
    let ready = &mesh.mesh.ready;
    let read = |path: &std::path::Path| std::fs::read(path);
    let own = Identity::from_pem(read(&ready.client_cert)?, read(&ready.client_key)?);
    let ca = Certificate::from_pem(read(&ready.ca)?);
    let tls = || {
        ClientTlsConfig::new()
            .ca_certificate(ca.clone())
            .identity(own.clone())
            .domain_name("localhost")
    };

    let full = AuthServiceClient::new(connect(&mesh.target("auth"), tls()).await?);
    let password = std::fs::read_to_string(&ready.admin_password_file)?;
    let login = LoginRequest {
        username: "admin".to_owned(),
        password,
    };
    let token = full.clone().login(login).await?.into_inner().access_token;
    let mut request = Request::new(GetMeRequest {});
    request
        .metadata_mut()
        .insert("authorization", format!("Bearer {token}").parse()?);
    let answer = full.clone().get_me(request).await?.into_inner();

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let target = listener.local_addr()?.to_string();
    let server_identity = bare_identity(&mesh)?;
    let service =
        tars_proto::auth::v1::auth_service_server::AuthServiceServer::new(bare::Bare(answer));
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(
        Server::builder()
            .tls_config(
                ServerTlsConfig::new()
                    .identity(server_identity)
                    .client_ca_root(ca.clone()),
            )?
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    let baseline = AuthServiceClient::new(connect(&target, tls()).await?);

    if let Some(one) = only {
        let client = if one == "mesh" { &full } else { &baseline };
        let slice = load(client, &token, PROFILED).await?;
        println!(
            "{one}: {} calls, {:.2} us of CPU each",
            slice.calls,
            cpu_us(&slice)
        );
        return Ok(());
    }
    load(&full, &token, length).await?;
    load(&baseline, &token, length).await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Who goes first alternates.
        if round % 2 == 0 {
            ours.push(load(&full, &token, length).await?);
            theirs.push(load(&baseline, &token, length).await?);
        } else {
            theirs.push(load(&baseline, &token, length).await?);
            ours.push(load(&full, &token, length).await?);
        }
    }
    let ratios = ours
        .iter()
        .zip(&theirs)
        .map(|(o, t)| rate(o) / rate(t))
        .collect();
    let report = serde_json::json!({
        "bench": "call",
        "baseline": "bare tonic, its own mTLS, same handler, same client",
        "sample_ratio": 0.01,
        "rounds": rounds,
        "concurrency": WORKERS,
        "throughput_ratio": median(ratios),
        "calls_per_s": median(ours.iter().map(rate).collect()),
        "baseline_calls_per_s": median(theirs.iter().map(rate).collect()),
        "cpu_us_per_call": median(ours.iter().map(cpu_us).collect()),
        "baseline_cpu_us_per_call": median(theirs.iter().map(cpu_us).collect()),
        "cpu_note": "client and server together, whole process",
    });
    if has("--json") {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    mesh.mesh.stop().await;
    Ok(())
}

/// A server certificate of the mesh's own authority, for the baseline.
fn bare_identity(mesh: &TestMesh) -> Result<Identity, Failure> {
    let id = "spiffe://tars.local/auth".parse()?;
    let request = tars_certs::ca::Request::new(id, Duration::from_secs(3600)).with_local_names();
    let now = tars_runtime::clock::Clock::system().now();
    let issued = mesh.authority().issue(&request, now)?;
    Ok(Identity::from_pem(
        issued.chain_pem,
        issued.key_pem.ok_or("no key")?.as_bytes(),
    ))
}
