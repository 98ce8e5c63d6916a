//! The honest client: one viewer on 127.0.0.1, who keeps a connection and sometimes opens another.

use crate::{Failure, target::Target};
use std::{collections::BTreeMap, time::Duration};
use tars::rest::Rest;
use tars_certs::{IdentityHandle, Revocations, SpiffeId};
use tars_interceptors::client::{Credentials, OutgoingService, outgoing};
use tars_mesh::{Channel, ChannelMetrics, ChannelOptions, ConnectionTable};
use tars_proto::{
    auth::v1::{GetMeRequest, auth_service_client::AuthServiceClient},
    automl::v1::{ListStudiesRequest, study_service_client::StudyServiceClient},
};
use tars_runtime::clock::Clock;
use tars_search::quantile::quantile;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tonic::Request;

/// An answer later than this is no good answer.
const PATIENCE: Duration = Duration::from_secs(5);
const EVERY: Duration = Duration::from_millis(25);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Surface {
    /// Calls to Auth and AutoML on connections that stand.
    Mesh,
    /// The same, each with a handshake first.
    MeshConnect,
    /// REST, on a connection of its own each.
    Gateway,
    /// `/livez` of the process's own port.
    Observe,
}

impl Surface {
    pub(crate) const ALL: [Self; 4] = [Self::Mesh, Self::MeshConnect, Self::Gateway, Self::Observe];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::MeshConnect => "mesh_connect",
            Self::Gateway => "gateway",
            Self::Observe => "observe",
        }
    }
}

/// What honest calls were answered, and when.
#[derive(Debug, Default)]
pub(crate) struct Samples(BTreeMap<Surface, Answers>);

#[derive(Debug, Default)]
struct Answers {
    /// Milliseconds of every call; those that failed took as long as they took.
    took: Vec<f64>,
    good: usize,
    /// The first thing that went wrong.
    complaint: Option<String>,
}

impl Answers {
    fn complain(&mut self, why: &str) {
        self.complaint.get_or_insert_with(|| why.to_owned());
    }
}

impl Samples {
    pub(crate) fn add(&mut self, other: Self) {
        for (surface, answers) in other.0 {
            let mine = self.0.entry(surface).or_default();
            mine.took.extend(answers.took);
            mine.good += answers.good;
            mine.complaint = mine.complaint.take().or(answers.complaint);
        }
    }

    pub(crate) fn complaint(&self, surface: Surface) -> Option<&str> {
        self.0.get(&surface)?.complaint.as_deref()
    }

    pub(crate) fn calls(&self, surface: Surface) -> usize {
        self.0.get(&surface).map_or(0, |a| a.took.len())
    }

    pub(crate) fn good_share(&self, surface: Surface) -> f64 {
        let answers = self.0.get(&surface).filter(|a| !a.took.is_empty());
        answers.map_or(f64::NAN, |a| a.good as f64 / a.took.len() as f64)
    }

    pub(crate) fn p99(&self, surface: Surface) -> f64 {
        let mut took = self.0.get(&surface).map_or(Vec::new(), |a| a.took.clone());
        took.sort_by(f64::total_cmp);
        quantile(&took, 0.99).unwrap_or(f64::NAN)
    }
}

/// A service with the identity that it must have.
#[derive(Clone)]
struct Service {
    target: String,
    expected: SpiffeId,
}

#[derive(Clone)]
pub(crate) struct Honest {
    identity: IdentityHandle,
    auth: Service,
    automl: Service,
    auth_channel: Channel,
    automl_channel: Channel,
    token: String,
    rest: Rest,
    observe: Rest,
}

fn channel(service: &Service, identity: &IdentityHandle) -> Result<Channel, Failure> {
    Ok(Channel::new(ChannelOptions {
        target: service.target.clone(),
        expected: service.expected.clone(),
        identity: identity.clone(),
        revocations: Revocations::default(),
        clock: Clock::system(),
        table: ConnectionTable::default(),
        metrics: ChannelMetrics::default(),
        service: "bench",
        audience: tars_mesh::channel::Audience::Operator,
    })?)
}

fn client(channel: &Channel) -> OutgoingService<Channel> {
    outgoing(channel.clone(), Credentials::Own)
}

impl Honest {
    pub(crate) async fn new(target: &Target) -> Result<Self, Failure> {
        let service = |url: &str, path: &str| -> Result<Service, Failure> {
            Ok(Service {
                target: url.trim_start_matches("https://").to_owned(),
                expected: SpiffeId::new(&target.ready.trust_domain, path)?,
            })
        };
        let auth = service(&target.ready.auth, "/auth")?;
        let automl = service(&target.ready.automl, "/automl")?;
        let identity = IdentityHandle::new(target.identity("/client/honest")?);
        Ok(Self {
            auth_channel: channel(&auth, &identity)?,
            automl_channel: channel(&automl, &identity)?,
            identity,
            auth,
            automl,
            token: target.honest.clone(),
            rest: Rest::new(&target.ready.gateway).with_token(&target.honest),
            observe: Rest::new(&target.ready.observe),
        })
    }

    fn signed<T>(&self, message: T) -> Result<Request<T>, Failure> {
        let mut request = Request::new(message);
        let bearer = format!("Bearer {}", self.token).parse()?;
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }

    async fn ask_auth(&self, channel: &Channel) -> Result<(), Failure> {
        let request = self.signed(GetMeRequest {})?;
        let answer = AuthServiceClient::new(client(channel))
            .get_me(request)
            .await?;
        drop(answer);
        Ok(())
    }

    async fn ask_automl(&self, channel: &Channel) -> Result<(), Failure> {
        let request = self.signed(ListStudiesRequest::default())?;
        let answer = StudyServiceClient::new(client(channel))
            .list_studies(request)
            .await?;
        drop(answer);
        Ok(())
    }

    /// One call of a surface; every other one goes to AutoML.
    async fn call(&self, surface: Surface, at: usize) -> Result<(), Failure> {
        let even = at.is_multiple_of(2);
        match surface {
            Surface::Mesh if even => self.ask_auth(&self.auth_channel).await,
            Surface::Mesh => self.ask_automl(&self.automl_channel).await,
            Surface::MeshConnect if even => {
                let fresh = channel(&self.auth, &self.identity)?;
                self.ask_auth(&fresh).await
            }
            Surface::MeshConnect => {
                let fresh = channel(&self.automl, &self.identity)?;
                self.ask_automl(&fresh).await
            }
            Surface::Gateway => {
                let path = if even { "/auth/me" } else { "/api/v1/studies" };
                self.rest.get(path).await?;
                Ok(())
            }
            Surface::Observe => {
                self.observe.text("/livez").await?;
                Ok(())
            }
        }
    }

    /// Calls every surface at a steady pace.
    pub(crate) async fn call_for(&self, length: Duration) -> Samples {
        let end = Instant::now() + length;
        let surfaces = Surface::ALL.map(|s| tokio::spawn(self.clone().paced(s, end)));
        let mut samples = Samples::default();
        for (surface, answers) in Surface::ALL.into_iter().zip(surfaces) {
            samples.0.insert(surface, answers.await.unwrap_or_default());
        }
        samples
    }

    async fn paced(self, surface: Surface, end: Instant) -> Answers {
        let mut answers = Answers::default();
        let mut pace = interval(EVERY);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while Instant::now() < end {
            pace.tick().await;
            let begun = Instant::now();
            let call = self.call(surface, answers.took.len());
            let answer = timeout(PATIENCE, call).await;
            answers.took.push(begun.elapsed().as_secs_f64() * 1e3);
            match answer {
                Ok(Ok(())) => answers.good += 1,
                Ok(Err(e)) => answers.complain(&e.to_string()),
                Err(_) => answers.complain("no answer in time"),
            }
        }
        answers
    }
}
