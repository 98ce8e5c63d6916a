//! Issuing and renewing.
//!
//! A first certificate begins a lineage; each renewal goes on with it. A lineage ends after its
//! life, however often it was renewed, and when any certificate of it is revoked: whoever stole one
//! cannot renew it for ever.

use super::{
    KEPT, micros,
    store::{self, IssuedRow, LineageRow},
    tokens::{self, TokenRow},
};
use crate::{Auth, AuthError, holder::Holder, horizon::DAY};
use std::{net::IpAddr, time::Duration};
use tars_certs::{
    PeerClass, SpiffeId,
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

/// How a certificate that the service knows of came to be; those that were made beside it name their
/// [`ManagedBy`](tars_certs::ca::journal::ManagedBy) instead.
#[derive(Debug, Clone, Copy)]
enum Source {
    JoinToken,
    Administrator,
    Renewal,
    /// Where Auth did not see it.
    Elsewhere,
}

impl Source {
    /// As rows have it.
    fn as_str(self) -> &'static str {
        match self {
            Self::JoinToken => "join-token",
            Self::Administrator => "administrator",
            Self::Renewal => "renewal",
            Self::Elsewhere => store::ELSEWHERE,
        }
    }
}

/// What the holder of the key gets.
#[derive(Debug)]
pub(crate) struct NewIdentity {
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) bundle: TrustBundle,
    pub(crate) not_after: Duration,
    pub(crate) rejoin: JoinToken,
}

/// A certificate as it is listed.
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
    /// A workload's certificate has the names by which ordinary clients find it. A person or an outside
    /// client has none: whatever their path ends in, they are nobody's server.
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
        }
    }

    /// Signs the next certificate of a lineage and writes both down.
    async fn issue_in(
        &self,
        tx: &mut Write,
        mut lineage: LineageRow,
        csr: &[u8],
        mut request: Request,
        (source, record): (Source, Record),
    ) -> Result<NewIdentity, AuthError> {
        let authority = self.certificates().authority()?;
        let key = csr::public_key(csr)?;
        let now = self.clock.now();
        let left = u64::try_from(lineage.ends_us.saturating_sub(micros(now))).unwrap_or(0);
        if lineage.revoked || left < 1_000_000 {
            return Err(AuthError::LineageEnded);
        }
        request.life = request.life.min(Duration::from_micros(left));
        let issued = authority.sign(&key, &request, now)?;
        let rejoin = JoinClaims {
            kind: JoinKind::Rejoin,
            id: rand::random(),
            lineage: *lineage.id.as_bytes(),
            issued_at: now,
            expires_at: Duration::from_micros(u64::try_from(lineage.ends_us).unwrap_or(0)),
            root: authority.active_root(),
            spiffe_id: request.id.clone(),
        };
        lineage.latest_serial = issued.name.serial.to_string();
        lineage.rejoin_before = std::mem::replace(&mut lineage.rejoin, token_id(&rejoin.id));
        let generation = authority.root_above(&issued.name.issuer);
        let row = IssuedRow {
            issuer: issued.name.issuer.to_string(),
            serial: issued.name.serial.to_string(),
            spiffe_id: request.id.as_str().to_owned(),
            lineage: lineage.id,
            issued_us: micros(now),
            not_after_us: micros(issued.not_after),
            generation: generation.map_or(0, |g| i64::from(g.generation)),
            source: source.as_str().to_owned(),
        };
        store::save_lineage(tx, &lineage).await?;
        store::insert_issued(tx, &row).await?;
        let record = record
            .resource(request.id.as_str())
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

    /// The first certificate of whoever shows a join token; or the next, after its last ran out.
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
                tracing::info!(%why, address, "join token refused");
                AuthError::JoinToken
            })?;
        if claims.spiffe_id.trust_domain() != self.certificates().trust_domain {
            tracing::warn!(id = %claims.spiffe_id, address, "a join token of another trust domain was shown");
            return Err(AuthError::JoinToken);
        }
        // Before the token is used up: a mistake in the request must not cost it.
        csr::public_key(csr)?;
        let class = self.certificates().class(&claims.spiffe_id)?;
        let request = self.request(claims.spiffe_id.clone(), class);
        let mut tx = self.store.begin("certificates.join").await?;
        let lineage = match claims.kind {
            JoinKind::First | JoinKind::Unrecorded => {
                self.first_lineage(&mut tx, &claims, class).await?
            }
            JoinKind::Rejoin => again(&mut tx, &claims).await?,
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
        let (now_us, past_us) = (self.clock.now_us(), self.horizon.ended_us(KEPT));
        let (id, expires) = (token_id(&claims.id), micros(claims.expires_at));
        let holds = match claims.kind {
            JoinKind::Unrecorded => tokens::is_after_cuts(tx, claims, self.clock.now()).await?,
            _ => match tokens::find(tx, &id).await? {
                Some(made) => made.holds(tx, class, now_us).await?,
                None => false,
            },
        };
        if !holds {
            tracing::warn!(id = %claims.spiffe_id, "a join token that was taken back was shown");
            return Err(AuthError::JoinToken);
        }
        let used = store::use_token(tx, &id, expires, past_us).await?;
        if used == Swap::Lost {
            tracing::warn!(id = %claims.spiffe_id, "a join token was shown again");
            return Err(AuthError::JoinToken);
        }
        Ok(self.new_lineage(claims.spiffe_id.as_str(), now_us))
    }

    /// The next certificate of the peer that asks. Who that is, its own certificate says.
    pub(crate) async fn renew_certificate(
        &self,
        peer: &Verified,
        csr: &[u8],
    ) -> Result<NewIdentity, AuthError> {
        let certificates = self.certificates();
        let authority = certificates.authority()?;
        let name = peer.name();
        if authority.root_above(&name.issuer).is_none() {
            return Err(AuthError::NotIssuedHere);
        }
        // Its connection is about to be cut.
        if certificates.feed.revocations.denies(peer) {
            return Err(AuthError::LineageEnded);
        }
        self.take_up().await?;
        let id = peer.certificate.id.clone();
        let request = self.request(id.clone(), certificates.class(&id)?);
        let mut tx = self.store.begin("certificates.renew").await?;
        // The list may have been behind: what is shown is looked at again where nobody is faster.
        let begin_s = i64::try_from(peer.certificate.not_before.as_secs()).unwrap_or(0);
        if store::cut_of(&mut tx, id.as_str()).await? > Some(begin_s) {
            return Err(AuthError::LineageEnded);
        }
        let known =
            store::find_issued(&mut tx, &name.issuer.to_string(), name.serial.as_str()).await?;
        let lineage = match &known {
            Some(row) => store::find_lineage(&mut tx, row.lineage).await?,
            None => None,
        };
        // One that was issued where Auth did not see it begins its lineage now, as of its begin.
        let lineage = match lineage {
            Some(lineage) => lineage,
            None => {
                let lineage = self.new_lineage(id.as_str(), micros(peer.certificate.not_before));
                store::save_lineage(&mut tx, &lineage).await?;
                let above = authority.root_above(&name.issuer);
                let row = IssuedRow {
                    issuer: name.issuer.to_string(),
                    serial: name.serial.to_string(),
                    spiffe_id: id.as_str().to_owned(),
                    lineage: lineage.id,
                    issued_us: micros(peer.certificate.not_before),
                    not_after_us: micros(peer.certificate.not_after),
                    generation: above.map_or(0, |g| i64::from(g.generation)),
                    source: Source::Elsewhere.as_str().to_owned(),
                };
                store::insert_issued(&mut tx, &row).await?;
                lineage
            }
        };
        let record = Record::new(&self.clock, "auth", "certificate.renewed")
            .caller(id.as_str())
            .detail("of", &name.serial);
        let identity = self
            .issue_in(&mut tx, lineage, csr, request, (Source::Renewal, record))
            .await?;
        tx.commit().await?;
        Ok(identity)
    }

    /// A certificate that an administrator asks for.
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

    /// A token for one first certificate.
    pub(crate) async fn create_join_token(
        &self,
        caller: &Caller,
        path: &str,
        ttl: Option<Duration>,
    ) -> Result<(JoinToken, JoinClaims), AuthError> {
        let certificates = self.certificates();
        let id = certificates.id(path)?;
        grant::issue_identity(caller, certificates.class(&id)?, false)?;
        let authority = certificates.authority()?;
        let now = self.clock.now();
        let ttl = ttl.unwrap_or(TOKEN_TTL);
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
        let mut tx = self.store.begin("join_tokens.create").await?;
        tokens::forget_ended(&mut tx, self.horizon.ended_us(DAY)).await?;
        tokens::insert(&mut tx, &row).await?;
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        Ok((JoinToken::mint(authority, &claims), claims))
    }

    pub(crate) async fn list_certificates(
        &self,
        spiffe_id: &str,
        token: &str,
        page_size: u32,
    ) -> Result<(Vec<Listed>, String), AuthError> {
        let size = page::size(page_size);
        let before = before(token).ok_or(AuthError::PageToken("page_token"))?;
        self.take_up().await?;
        let rows = self
            .store
            .issued_list(spiffe_id, (before.0, &before.1), size + 1)
            .await?;
        let (rows, next) = page::cut(rows, size, |r| format!("{}_{}", r.issued_us, r.serial));
        let lineages = self.store.lineages().await?;
        let denied = self.certificates().feed.revocations.current();
        let listed = rows.into_iter().map(|row| {
            let lineage = lineages.iter().find(|l| l.id == row.lineage);
            let name = row.issuer.parse().ok().zip(row.serial.parse().ok());
            let name = name.map(|(issuer, serial)| tars_certs::CertName { issuer, serial });
            Listed {
                lineage_ends_us: lineage.map_or(0, |l| l.ends_us),
                revoked: name.is_some_and(|n| denied.certificates.contains(&n)),
                row,
            }
        });
        Ok((listed.collect(), next))
    }
}

async fn again(tx: &mut Write, claims: &JoinClaims) -> Result<LineageRow, AuthError> {
    let lineage = store::find_lineage(tx, Uuid::from_bytes(claims.lineage)).await?;
    let shown = token_id(&claims.id);
    let mut lineage = lineage
        .filter(|l| l.rejoin == shown || l.rejoin_before == shown)
        .ok_or(AuthError::JoinToken)?;
    // Both are used up by either.
    lineage.rejoin.clear();
    Ok(lineage)
}

/// Where a page begins.
fn before(token: &str) -> Option<(i64, String)> {
    if token.is_empty() {
        return Some((i64::MAX, String::new()));
    }
    let (at, serial) = token.split_once('_')?;
    Some((at.parse().ok()?, serial.to_owned()))
}
