//! Issuing and renewing certificates.
//!
//! A first certificate starts a lineage, and each renewal continues it. A lineage ends after its
//! maximum lifetime, however often it is renewed, and when any certificate of it is revoked: a
//! stolen certificate cannot be renewed for ever.

use super::{
    RETENTION, micros,
    store::{self, IssuedRow, LineageRow},
    tokens::{self, TokenRow},
};
use crate::{Auth, AuthError, holder::Holder, horizon::DAY};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tars_certs::{
    Authority, CertName, PeerClass, SpiffeId,
    ca::{Request, csr},
    join::{JoinClaims, JoinKind, JoinToken},
    peer::Verified,
};
use tars_credentials::{Caller, grant};
use tars_proto::auth::v1::TrustBundle;
use tars_runtime::{
    audit::{self, Record, Severity},
    db::{Swap, Write},
    page,
};
use uuid::Uuid;

const TOKEN_TTL: Duration = Duration::from_secs(600);

/// How a recorded certificate was issued. Those imported from the authority's journal have the
/// value of their [`ManagedBy`](tars_certs::ca::ManagedBy) instead.
#[derive(Debug, Clone, Copy)]
enum Source {
    JoinToken,
    Administrator,
    Renewal,
    /// Without Auth's knowledge, before its first renewal here.
    Elsewhere,
}

impl Source {
    /// The value of the `source` column.
    fn as_str(self) -> &'static str {
        match self {
            Self::JoinToken => "join-token",
            Self::Administrator => "administrator",
            Self::Renewal => "renewal",
            Self::Elsewhere => store::ELSEWHERE,
        }
    }
}

/// What the holder of the key receives.
#[derive(Debug)]
pub(crate) struct NewIdentity {
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) bundle: TrustBundle,
    pub(crate) not_after: Duration,
    pub(crate) rejoin: JoinToken,
}

/// A certificate in a list.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) row: IssuedRow,
    pub(crate) lineage_ends_us: i64,
    pub(crate) revoked: bool,
}

fn token_id(bytes: &[u8; 16]) -> String {
    tars_certs::name::hex(bytes)
}

impl Auth {
    /// The request for an identity. A workload's certificate has the names by which ordinary
    /// clients find it; a person's or an outside client's has none, whatever its path ends in.
    fn request(&self, id: SpiffeId, class: PeerClass) -> Request {
        let life = self.certificates().life(class);
        if !class.is_workload() {
            return Request::new(id, life);
        }
        let name = id.path().rsplit('/').next().unwrap_or_default().to_owned();
        let suffixes = &self.certificates().settings.dns_suffixes;
        let mut request = Request::new(id, life).with_local_names();
        request
            .dns
            .extend(suffixes.iter().map(|s| format!("{name}{s}")));
        request.dns.push(name);
        request
    }

    pub(super) fn new_lineage(&self, spiffe_id: &str, started_us: i64) -> LineageRow {
        LineageRow {
            id: Uuid::now_v7(),
            spiffe_id: spiffe_id.to_owned(),
            started_us,
            ends_us: started_us.saturating_add(micros(self.certificates().lineage_life())),
            revoked: false,
            latest_serial: String::new(),
            rejoin: String::new(),
            rejoin_before: String::new(),
            replica: String::new(),
        }
    }

    /// The authority as it stays until the transaction ends: with every floor that any replica has
    /// raised, and with the intermediates of all of them.
    pub(super) async fn current_authority(
        &self,
        tx: &mut Write,
    ) -> Result<&Arc<Authority>, AuthError> {
        if let Some(shared) = &self.shared {
            shared.refresh(&mut **tx).await?;
        }
        self.certificates().authority()
    }

    /// Renews the intermediate of a shared authority when that is due, before a transaction that signs:
    /// the new one has to be committed first. An authority that is not shared does it as it signs.
    async fn renew_intermediate(&self) -> Result<(), AuthError> {
        match &self.shared {
            Some(shared) => shared.renew_if_due().await,
            None => Ok(()),
        }
    }

    /// Issues the next certificate of a lineage and records both.
    async fn issue_in(
        &self,
        tx: &mut Write,
        mut lineage: LineageRow,
        csr: &[u8],
        request: Request,
        (source, record): (Source, Record),
    ) -> Result<NewIdentity, AuthError> {
        let authority = self.current_authority(tx).await?;
        let key = csr::public_key(csr)?;
        let now = self.clock.now();
        let request = within_lineage(request, &lineage, now)?;
        let issued = authority.sign(&key, &request, now)?;
        let rejoin = rejoin_claims(authority, &lineage, &request.id, now);
        lineage.latest_serial = issued.name.serial.to_string();
        lineage.rejoin_before = std::mem::replace(&mut lineage.rejoin, token_id(&rejoin.id));
        let validity = (now, issued.not_after);
        let row = issued_row(authority, &lineage, &issued.name, validity, source);
        store::save_lineage(tx, &lineage).await?;
        store::insert_issued(tx, &row).await?;
        let record = record
            .resource(&row.spiffe_id)
            .detail("serial", &row.serial)
            .detail("issuer", &row.issuer)
            .detail("lineage", lineage.id);
        audit::insert(tx, &record).await?;
        Ok(NewIdentity {
            chain: issued.chain.iter().map(|c| c.to_vec()).collect(),
            bundle: self.certificates().bundle().unwrap_or_default(),
            not_after: issued.not_after,
            rejoin: JoinToken::mint(authority, &rejoin),
            spiffe_id: request.id,
        })
    }

    /// Issues a first certificate for a join token, or the next one for a rejoin token.
    pub(crate) async fn issue_with_token(
        &self,
        token: &str,
        csr: &[u8],
        address: &str,
    ) -> Result<NewIdentity, AuthError> {
        let authority = self.certificates().authority()?;
        let claims = JoinToken::new(token)
            .verify(authority, self.clock.now())
            .map_err(|why| {
                tracing::info!(%why, address, "join token rejected");
                AuthError::JoinToken
            })?;
        if claims.spiffe_id.trust_domain() != self.certificates().trust_domain {
            tracing::warn!(id = %claims.spiffe_id, address, "a join token of another trust domain was presented");
            return Err(AuthError::JoinToken);
        }
        self.renew_intermediate().await?;
        // Checked before the token is used up, which a mistake in the request must not cost.
        csr::public_key(csr)?;
        let class = self.certificates().class(&claims.spiffe_id)?;
        let request = self.request(claims.spiffe_id.clone(), class);
        let mut tx = self.store.begin("certificates.join").await?;
        let lineage = match claims.kind {
            JoinKind::First | JoinKind::Unrecorded => {
                self.first_lineage(&mut tx, &claims, class).await?
            }
            JoinKind::Rejoin => rejoined_lineage(&mut tx, &claims).await?,
        };
        let record = Record::new(&self.clock, "auth", "certificate.issued")
            .caller(Source::JoinToken.as_str())
            .detail("address", address)
            .detail("rejoin", claims.kind == JoinKind::Rejoin);
        let identity = self
            .issue_in(&mut tx, lineage, csr, request, (Source::JoinToken, record))
            .await?;
        tx.commit().await?;
        Ok(identity)
    }

    async fn first_lineage(
        &self,
        tx: &mut Write,
        claims: &JoinClaims,
        class: PeerClass,
    ) -> Result<LineageRow, AuthError> {
        let (now_us, past_us) = (self.clock.now_us(), self.horizon.ended_us(RETENTION));
        let (id, expires) = (token_id(&claims.id), micros(claims.expires_at));
        let holds = match claims.kind {
            JoinKind::Unrecorded => {
                tokens::is_after_revocations(tx, claims, self.clock.now()).await?
            }
            _ => match tokens::find(tx, &id).await? {
                Some(made) => made.holds(tx, class, now_us).await?,
                None => false,
            },
        };
        if !holds {
            tracing::warn!(id = %claims.spiffe_id, "a revoked join token was presented");
            return Err(AuthError::JoinToken);
        }
        let used = store::use_token(tx, &id, expires, past_us).await?;
        if used == Swap::Lost {
            tracing::warn!(id = %claims.spiffe_id, "a used join token was presented");
            return Err(AuthError::JoinToken);
        }
        Ok(self.new_lineage(claims.spiffe_id.as_str(), now_us))
    }

    /// Issues the successor of the certificate that the peer presented.
    pub(crate) async fn renew_certificate(
        &self,
        peer: &Verified,
        csr: &[u8],
    ) -> Result<NewIdentity, AuthError> {
        self.check_renewable(peer).await?;
        self.renew_intermediate().await?;
        self.import_journal().await?;
        let id = &peer.certificate.id;
        let request = self.request(id.clone(), self.certificates().class(id)?);
        let record = Record::new(&self.clock, "auth", "certificate.renewed")
            .caller(id.as_str())
            .detail("of", &peer.name().serial);
        let mut tx = self.store.begin("certificates.renew").await?;
        let lineage = self.lineage_to_renew(&mut tx, peer).await?;
        let identity = self
            .issue_in(&mut tx, lineage, csr, request, (Source::Renewal, record))
            .await?;
        tx.commit().await?;
        Ok(identity)
    }

    /// Checks that the peer's certificate was issued by this authority and is not denied.
    async fn check_renewable(&self, peer: &Verified) -> Result<(), AuthError> {
        let certificates = self.certificates();
        let authority = certificates.authority()?;
        let issuer = &peer.name().issuer;
        if authority.root_above(issuer).is_none() {
            // Another replica may have renewed the intermediate a moment ago.
            if let Some(shared) = &self.shared {
                shared.catch_up().await?;
            }
            authority
                .root_above(issuer)
                .ok_or(AuthError::NotIssuedHere)?;
        }
        // The peer's connection is about to be closed for the same reason.
        match certificates.feed.revocations.denies(peer) {
            true => Err(AuthError::LineageEnded),
            false => Ok(()),
        }
    }

    /// The lineage that the peer's certificate belongs to. One that Auth has no record of starts a
    /// lineage, as of the start of its validity.
    async fn lineage_to_renew(
        &self,
        tx: &mut Write,
        peer: &Verified,
    ) -> Result<LineageRow, AuthError> {
        let (name, leaf) = (peer.name(), &peer.certificate);
        // The deny-list of this process may lag behind the database, which is up to date here.
        let begin_s = i64::try_from(leaf.not_before.as_secs()).unwrap_or(0);
        if store::revoked_before(tx, leaf.id.as_str()).await? > Some(begin_s) {
            return Err(AuthError::LineageEnded);
        }
        let issuer = name.issuer.to_string();
        if let Some(row) = store::find_issued(tx, &issuer, name.serial.as_str()).await?
            && let Some(lineage) = store::find_lineage(tx, row.lineage).await?
        {
            return Ok(lineage);
        }
        let authority = self.certificates().authority()?;
        let lineage = self.new_lineage(leaf.id.as_str(), micros(leaf.not_before));
        let validity = (leaf.not_before, leaf.not_after);
        let row = issued_row(authority, &lineage, name, validity, Source::Elsewhere);
        store::save_lineage(tx, &lineage).await?;
        store::insert_issued(tx, &row).await?;
        Ok(lineage)
    }

    /// Issues a certificate on behalf of an administrator.
    pub(crate) async fn issue_certificate(
        &self,
        caller: &Caller,
        path: &str,
        csr: &[u8],
        (dns, ips): (Vec<String>, Vec<IpAddr>),
        life: Option<Duration>,
    ) -> Result<NewIdentity, AuthError> {
        let certificates = self.certificates();
        let id = certificates.id(path)?;
        let class = certificates.class(&id)?;
        let server_names = !dns.is_empty() || !ips.is_empty();
        grant::issue_identity(caller, class, server_names)?;
        let mut request = self.request(id.clone(), class);
        request.life = life.map_or(request.life, |l| l.min(request.life));
        request.dns.extend(dns);
        request.ips.extend(ips);
        let record = Record::new(&self.clock, "auth", "certificate.issued").caller(&caller.label);
        let lineage = self.new_lineage(id.as_str(), self.clock.now_us());
        self.renew_intermediate().await?;
        let mut tx = self.store.begin("certificates.issue").await?;
        let identity = self
            .issue_in(
                &mut tx,
                lineage,
                csr,
                request,
                (Source::Administrator, record),
            )
            .await?;
        tx.commit().await?;
        Ok(identity)
    }

    /// Creates a token for one first certificate.
    pub(crate) async fn create_join_token(
        &self,
        caller: &Caller,
        path: &str,
        ttl: Option<Duration>,
    ) -> Result<(JoinToken, JoinClaims), AuthError> {
        let certificates = self.certificates();
        let id = certificates.id(path)?;
        grant::issue_identity(caller, certificates.class(&id)?, false)?;
        let now = self.clock.now();
        let ttl = ttl.unwrap_or(TOKEN_TTL);
        let mut tx = self.store.begin("join_tokens.create").await?;
        let authority = self.current_authority(&mut tx).await?;
        let claims = JoinClaims::first(authority, JoinKind::First, id, now, ttl);
        let record = Record::new(&self.clock, "auth", "join_token.created")
            .severity(Severity::Warning)
            .caller(&caller.label)
            .resource(claims.spiffe_id.as_str());
        let row = TokenRow {
            id: token_id(&claims.id),
            spiffe_id: claims.spiffe_id.as_str().to_owned(),
            maker: Holder::of(caller)?,
            created_us: micros(now),
            expires_us: micros(claims.expires_at),
            revoked: false,
        };
        tokens::forget_ended(&mut tx, self.horizon.ended_us(DAY)).await?;
        tokens::insert(&mut tx, &row).await?;
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        Ok((JoinToken::mint(authority, &claims), claims))
    }

    /// Lists certificates, newest first, with the token of the next page.
    pub(crate) async fn list_certificates(
        &self,
        spiffe_id: &str,
        token: &str,
        page_size: u32,
    ) -> Result<(Vec<Listed>, String), AuthError> {
        let size = page::size(page_size);
        let before = page::start_before(token)?;
        self.import_journal().await?;
        let rows = self
            .store
            .issued_list(spiffe_id, (before.0, &before.1), size)
            .await?;
        let (rows, next) = rows.cut(|r| format!("{}_{}", r.issued.issued_us, r.issued.serial));
        let denied = self.certificates().feed.revocations.current();
        let listed = rows.into_iter().map(|listed| {
            let row = listed.issued;
            let name = row.issuer.parse().ok().zip(row.serial.parse().ok());
            let name = name.map(|(issuer, serial)| CertName { issuer, serial });
            Listed {
                lineage_ends_us: listed.lineage_ends_us,
                revoked: name.is_some_and(|n| denied.certificates.contains(&n)),
                row,
            }
        });
        Ok((listed.collect(), next))
    }
}

/// Limits a request to what is left of its lineage.
fn within_lineage(
    mut request: Request,
    lineage: &LineageRow,
    now: Duration,
) -> Result<Request, AuthError> {
    let left_us = u64::try_from(lineage.ends_us.saturating_sub(micros(now))).unwrap_or(0);
    if lineage.revoked || left_us < 1_000_000 {
        return Err(AuthError::LineageEnded);
    }
    request.life = request.life.min(Duration::from_micros(left_us));
    Ok(request)
}

/// The token with which the holder returns after its certificate has expired.
fn rejoin_claims(
    authority: &Authority,
    lineage: &LineageRow,
    id: &SpiffeId,
    now: Duration,
) -> JoinClaims {
    JoinClaims {
        kind: JoinKind::Rejoin,
        id: rand::random(),
        lineage: *lineage.id.as_bytes(),
        issued_at: now,
        expires_at: Duration::from_micros(u64::try_from(lineage.ends_us).unwrap_or(0)),
        root: authority.active_root(),
        spiffe_id: id.clone(),
    }
}

/// The row of a certificate. `validity` is when it was issued and when it expires.
fn issued_row(
    authority: &Authority,
    lineage: &LineageRow,
    name: &CertName,
    (issued, not_after): (Duration, Duration),
    source: Source,
) -> IssuedRow {
    let root = authority.root_above(&name.issuer);
    IssuedRow {
        issuer: name.issuer.to_string(),
        serial: name.serial.to_string(),
        spiffe_id: lineage.spiffe_id.clone(),
        lineage: lineage.id,
        issued_us: micros(issued),
        not_after_us: micros(not_after),
        generation: root.map_or(0, |g| i64::from(g.generation)),
        source: source.as_str().to_owned(),
    }
}

async fn rejoined_lineage(tx: &mut Write, claims: &JoinClaims) -> Result<LineageRow, AuthError> {
    let lineage = store::find_lineage(tx, Uuid::from_bytes(claims.lineage)).await?;
    let shown = token_id(&claims.id);
    let mut lineage = lineage
        .filter(|l| l.rejoin == shown || l.rejoin_before == shown)
        .ok_or(AuthError::JoinToken)?;
    // Either token uses up both.
    lineage.rejoin.clear();
    Ok(lineage)
}
