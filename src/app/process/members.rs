//! The identities of a process: one for each of its services, and where each comes from.

use super::authority::{authority_in, ca_dir, open_vault, workload_id, workload_request};
use crate::app::{
    Process, Service, StartError, data_dir,
    dir_lock::DirLock,
    files::RuleFiles,
    identity::{JoinSource, Joining, ManagedIdentity},
};
use std::sync::Arc;
use tars_certs::{Authority, IdentityFiles, IdentityHandle, TrustFeed, ca::Request};
use tars_mesh::{Channel, ChannelOptions, channel::Audience};
use tars_runtime::{
    clock::Clock,
    config::Config,
    descriptors,
    health::{State, check},
    trace::Tracer,
};

/// A service of this process, as its peers see it.
pub(crate) struct Member {
    pub(crate) identity: IdentityHandle,
    pub(crate) source: &'static str,
    /// What Auth pushes to this service. Services of one process each have their own: a push that
    /// comes late to one must not take back what another has heard.
    pub(crate) feed: TrustFeed,
    /// Each service is one of its own in traces.
    pub(crate) tracer: Tracer,
}

/// Where the identity of a lone service comes from.
#[derive(Debug)]
pub enum Origin {
    /// The authority in the process's own data directory. For Auth.
    Authority,
    /// Files that somebody else keeps fresh.
    Files(IdentityFiles),
    /// Auth, in exchange for a join token at the first start.
    Join,
}

impl Process {
    /// A process of several services, whose certificates the authority in its data directory issues.
    pub(crate) async fn new(
        config: Config,
        clock: Clock,
        services: &[Service],
    ) -> Result<Self, StartError> {
        let files = RuleFiles::read(&config)?;
        let config = fit_descriptors(config, services);
        let lock = DirLock::whole(&config.data.dir)?;
        data_dir::check(&config, services)?;
        let mut process = Self::assemble(config, clock, lock, services, files)?;
        let vault = open_vault(&process.config).await?;
        let authority = authority_in(&vault, &process.config, &process.clock).await?;
        let authority = Arc::new(authority);
        process.vault = Some(vault);
        process.authority = Some(Arc::clone(&authority));
        for service in services {
            let request = workload_request(&process.config, *service)?;
            let feed = TrustFeed::default();
            let revocations = feed.revocations.clone();
            let managed =
                process
                    .identities
                    .by_authority(*service, &authority, request, revocations)?;
            process.add_member(*service, managed, feed)?;
        }
        // Auth's own list is the first to know.
        authority.enforce(process.member(Service::Auth)?.feed.revocations.clone());
        Ok(process)
    }

    /// A process of one service.
    pub(crate) async fn alone(
        config: Config,
        service: Service,
        origin: &Origin,
    ) -> Result<Self, StartError> {
        let files = RuleFiles::read(&config)?;
        let config = fit_descriptors(config, &[service]);
        let lock = DirLock::part(&config.data.dir, service.as_str())?;
        data_dir::check(&config, &[service])?;
        let mut process = Self::assemble(config, Clock::system(), lock, &[service], files)?;
        if service == Service::Auth {
            process.open_auth(origin).await?;
        }
        let feed = TrustFeed::default();
        let revocations = feed.revocations.clone();
        if let Some(authority) = &process.authority {
            authority.enforce(revocations.clone());
        }
        let managed = match (origin, &process.authority) {
            (Origin::Files(files), _) => {
                process.identities.by_files(service, files, revocations)?
            }
            (Origin::Authority, Some(authority)) => {
                let request = workload_request(&process.config, service)?;
                process
                    .identities
                    .by_authority(service, authority, request, revocations)?
            }
            _ => process.join(service, &feed).await?,
        };
        process.add_member(service, managed, feed)?;
        Ok(process)
    }

    /// Opens what only Auth has: its database, and its authority unless certificates come from elsewhere.
    async fn open_auth(&mut self, origin: &Origin) -> Result<(), StartError> {
        let vault = open_vault(&self.config).await?;
        if matches!(origin, Origin::Authority) || Authority::exists(&ca_dir(&self.config)) {
            let authority = authority_in(&vault, &self.config, &self.clock).await?;
            self.authority = Some(Arc::new(authority));
        }
        self.vault = Some(vault);
        Ok(())
    }

    async fn join(
        &self,
        service: Service,
        feed: &TrustFeed,
    ) -> Result<ManagedIdentity, StartError> {
        let joining = Joining {
            file: self.service_dir(service).join("identity.json"),
            bootstrap: self.config.connect.bootstrap.clone(),
            auth: workload_id(&self.config, Service::Auth)?,
            token_file: self.config.certificates.join_token_file.clone(),
            own: workload_id(&self.config, service)?,
            clock: self.clock.clone(),
        };
        let first = joining.start().await?;
        let handle = IdentityHandle::new(first);
        let to_auth = Channel::new(ChannelOptions {
            target: self.config.connect.auth.clone(),
            expected: joining.auth.clone(),
            identity: handle.clone(),
            revocations: feed.revocations.clone(),
            clock: self.clock.clone(),
            table: self.connections.clone(),
            metrics: self.channel_metrics.clone(),
            service: service.as_str(),
            audience: Audience::Strangers,
        })?;
        let source = JoinSource::new(joining, &handle.current(), to_auth, feed);
        let revocations = feed.revocations.clone();
        Ok(self
            .identities
            .keep(service.as_str(), handle, source, revocations, |_| {}))
    }

    fn add_member(
        &mut self,
        service: Service,
        managed: ManagedIdentity,
        feed: TrustFeed,
    ) -> Result<(), StartError> {
        self.watch_own_leaf(service, &managed.handle);
        let member = Member {
            tracer: self.exporting(service.as_str())?,
            identity: managed.handle,
            source: managed.source,
            feed,
        };
        self.members.insert(service, member);
        self.work.background(managed.work);
        Ok(())
    }

    /// Writes an identity as files, and keeps them fresh.
    pub(crate) fn keep_files(
        &self,
        request: Request,
        files: &IdentityFiles,
    ) -> Result<(), StartError> {
        let Some(authority) = &self.authority else {
            return Err(StartError::NoAuthority(request.id));
        };
        let revocations = self.member(Service::Auth)?.feed.revocations.clone();
        let managed =
            self.identities
                .written_out(authority, request, files.clone(), revocations)?;
        self.work.background(managed.work);
        Ok(())
    }

    fn watch_own_leaf(&self, service: Service, handle: &IdentityHandle) {
        let (handle, clock) = (handle.clone(), self.clock.clone());
        let look = move || match (handle.problem(clock.now()), handle.health().last_error) {
            (Some(problem), _) => State::Failed(problem),
            (None, Some(why)) => State::Degraded(format!("renewal fails: {why}")),
            (None, None) => State::Ok,
        };
        self.add_check(&format!("{}.certificate", service.as_str()), check(look));
    }
}

/// Gives the listeners no more connections than the process can have files open.
fn fit_descriptors(mut config: Config, services: &[Service]) -> Config {
    let gateway = services.contains(&Service::Gateway);
    let bootstrap = services.contains(&Service::Auth) && config.listen.bootstrap.is_some();
    let listeners = descriptors::Listeners {
        mesh: services.len() - usize::from(gateway) + usize::from(bootstrap),
        gateway,
    };
    let lowered = descriptors::fit(&mut config, listeners, descriptors::raise_limit());
    match lowered {
        Some(lowered) if lowered.is_tight => tracing::warn!("{lowered}"),
        Some(lowered) => tracing::debug!("{lowered}"),
        None => {}
    }
    config
}
