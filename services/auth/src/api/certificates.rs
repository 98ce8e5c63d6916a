//! The handlers of certificates, revocations and roots.

use super::Api;
use crate::{
    AuthError,
    certificates::{NewIdentity, Target, named, store::RevocationRow},
};
use std::{net::IpAddr, time::Duration};
use tars_certs::{
    KeyId,
    ca::{RootInfo, rotation},
    peer::Verified,
};
use tars_interceptors::Call;
use tars_proto::{
    Timestamp,
    auth::v1::{self as pb, *},
    time::timestamp,
};
use tonic::{Request, Response, Status};

fn at(since_epoch: Duration) -> Timestamp {
    timestamp(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
}

fn identity(new: NewIdentity) -> IssuedIdentity {
    IssuedIdentity {
        spiffe_id: new.spiffe_id.to_string(),
        chain: new.chain,
        bundle: Some(new.bundle),
        not_after: Some(at(new.not_after)),
        rejoin_token: new.rejoin.as_str().to_owned(),
    }
}

pub(super) fn verified(call: &Call) -> Result<&Verified, Status> {
    let verified = call.peer.verified.as_ref();
    verified.ok_or_else(|| Status::internal("the peer has no certificate"))
}

#[tonic::async_trait]
impl bootstrap_service_server::BootstrapService for Api {
    async fn issue_with_token(
        &self,
        request: Request<IssueWithTokenRequest>,
    ) -> Result<Response<IssueWithTokenResponse>, Status> {
        let address = Call::of(&request)?.client.to_string();
        let IssueWithTokenRequest { token, csr } = request.into_inner();
        let token = zeroize::Zeroizing::new(token);
        let new = self.0.issue_with_token(&token, &csr, &address).await?;
        Ok(Response::new(IssueWithTokenResponse {
            identity: Some(identity(new)),
        }))
    }
}

fn addresses(texts: &[String]) -> Result<Vec<IpAddr>, AuthError> {
    let parse = |t: &String| {
        t.parse()
            .map_err(|_| AuthError::Field("ip_addresses", format!("{t:?} is not an IP address")))
    };
    texts.iter().map(parse).collect()
}

/// Whole seconds, the resolution of certificates.
fn life(asked: &tars_proto::Duration) -> Result<Duration, AuthError> {
    let seconds = u64::try_from(asked.seconds).unwrap_or(0);
    if seconds == 0 {
        return Err(AuthError::Field(
            "life",
            "must be at least a second".to_owned(),
        ));
    }
    Ok(Duration::from_secs(seconds))
}

fn target(request: &RevokeCertificateRequest) -> Result<Target, AuthError> {
    let bad = |field, e: &dyn std::fmt::Display| AuthError::Field(field, e.to_string());
    match (request.serial.as_str(), request.spiffe_id.as_str()) {
        ("", "") => Err(bad("serial", &"either a serial or a spiffe_id is required")),
        (serial, "") => {
            let issuer = match request.issuer.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|e| bad("issuer", &e))?),
            };
            let serial = serial.parse().map_err(|e| bad("serial", &e))?;
            Ok(Target::Certificate { issuer, serial })
        }
        ("", id) => {
            let seconds = request.not_before.as_ref().map(|t| t.seconds);
            Ok(Target::Identity {
                id: id.parse().map_err(|e| bad("spiffe_id", &e))?,
                before: seconds.map(|s| Duration::from_secs(u64::try_from(s).unwrap_or(0))),
            })
        }
        _ => Err(bad(
            "spiffe_id",
            &"name a certificate or an identity, not both",
        )),
    }
}

fn revocation(row: RevocationRow) -> pb::Revocation {
    let identity = row.serial.is_empty();
    pb::Revocation {
        issuer: row.issuer,
        serial: row.serial,
        spiffe_id: row.spiffe_id,
        not_before: identity.then_some(Timestamp {
            seconds: row.not_before_s,
            nanos: 0,
        }),
        reason: row.reason,
        revoked_at: Some(timestamp(row.revoked_us)),
        revoked_by: row.revoked_by,
    }
}

fn root(info: &RootInfo) -> pb::Root {
    let state = match info.state {
        rotation::RootState::Prepared => pb::RootState::Prepared,
        rotation::RootState::Active => pb::RootState::Active,
        rotation::RootState::Retired => pb::RootState::Retired,
        rotation::RootState::Tainted => pb::RootState::Tainted,
    };
    pb::Root {
        generation: info.generation,
        state: state.into(),
        key_id: info.key.to_string(),
        subject: info.subject.clone(),
        not_before: Some(at(info.not_before)),
        not_after: Some(at(info.not_after)),
        online: info.online,
    }
}

fn step(wanted: RootStep) -> Option<rotation::RotationStep> {
    match wanted {
        RootStep::Unspecified => None,
        RootStep::Prepare => Some(rotation::RotationStep::Prepare),
        RootStep::Activate => Some(rotation::RotationStep::Activate),
        RootStep::Taint => Some(rotation::RotationStep::Taint),
        RootStep::Remove => Some(rotation::RotationStep::Remove),
    }
}

fn step_message(taken: rotation::RotationStep) -> RootStep {
    match taken {
        rotation::RotationStep::Prepare => RootStep::Prepare,
        rotation::RotationStep::Activate => RootStep::Activate,
        rotation::RotationStep::Taint => RootStep::Taint,
        rotation::RotationStep::Remove => RootStep::Remove,
    }
}

#[tonic::async_trait]
impl certificate_service_server::CertificateService for Api {
    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let call = Call::of(&request)?;
        let csr = request.into_inner().csr;
        let new = self.0.renew_certificate(verified(&call)?, &csr).await?;
        Ok(Response::new(RenewCertificateResponse {
            identity: Some(identity(new)),
        }))
    }

    async fn issue_certificate(
        &self,
        request: Request<IssueCertificateRequest>,
    ) -> Result<Response<IssueCertificateResponse>, Status> {
        let call = Call::of(&request)?;
        let message = request.into_inner();
        let names = (message.dns_names, addresses(&message.ip_addresses)?);
        let life = message.life.as_ref().map(life).transpose()?;
        let new = self
            .0
            .issue_certificate(
                call.require_caller()?,
                &message.path,
                &message.csr,
                names,
                life,
            )
            .await?;
        Ok(Response::new(IssueCertificateResponse {
            identity: Some(identity(new)),
        }))
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenResponse>, Status> {
        let call = Call::of(&request)?;
        let CreateJoinTokenRequest { path, ttl_seconds } = request.into_inner();
        let ttl = ttl_seconds.map(|s| Duration::from_secs(u64::from(s)));
        let caller = call.require_caller()?;
        let (token, claims) = self.0.create_join_token(caller, &path, ttl).await?;
        Ok(Response::new(CreateJoinTokenResponse {
            token: token.as_str().to_owned(),
            spiffe_id: claims.spiffe_id.to_string(),
            expires_at: Some(at(claims.expires_at)),
        }))
    }

    async fn list_certificates(
        &self,
        request: Request<ListCertificatesRequest>,
    ) -> Result<Response<ListCertificatesResponse>, Status> {
        let ListCertificatesRequest {
            page_size,
            page_token,
            spiffe_id,
        } = request.into_inner();
        let (rows, next_page_token) = self
            .0
            .list_certificates(&spiffe_id, &page_token, page_size)
            .await?;
        let certificates = rows.into_iter().map(|listed| pb::Certificate {
            spiffe_id: listed.row.spiffe_id,
            issuer: listed.row.issuer,
            serial: listed.row.serial,
            lineage: listed.row.lineage.to_string(),
            issued_at: Some(timestamp(listed.row.issued_us)),
            not_after: Some(timestamp(listed.row.not_after_us)),
            lineage_ends_at: Some(timestamp(listed.lineage_ends_us)),
            revoked: listed.revoked,
            root_generation: u32::try_from(listed.row.generation).unwrap_or(0),
            source: listed.row.source,
        });
        Ok(Response::new(ListCertificatesResponse {
            certificates: certificates.collect(),
            next_page_token,
        }))
    }

    async fn revoke_certificate(
        &self,
        request: Request<RevokeCertificateRequest>,
    ) -> Result<Response<RevokeCertificateResponse>, Status> {
        let call = Call::of(&request)?;
        let message = request.into_inner();
        let target = target(&message)?;
        let caller = call.require_caller()?;
        let rows = self.0.revoke(caller, &target, &message.reason).await?;
        Ok(Response::new(RevokeCertificateResponse {
            revocations: rows.into_iter().map(revocation).collect(),
        }))
    }

    async fn list_revocations(
        &self,
        request: Request<ListRevocationsRequest>,
    ) -> Result<Response<ListRevocationsResponse>, Status> {
        let ListRevocationsRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let (rows, next_page_token) = self.0.list_revocations(&page_token, page_size).await?;
        Ok(Response::new(ListRevocationsResponse {
            revocations: rows.into_iter().map(revocation).collect(),
            next_page_token,
        }))
    }

    async fn get_trust_bundle(
        &self,
        _: Request<GetTrustBundleRequest>,
    ) -> Result<Response<GetTrustBundleResponse>, Status> {
        let bundle = self.0.certificates().bundle();
        let bundle = bundle.ok_or(AuthError::NoAuthority)?;
        Ok(Response::new(GetTrustBundleResponse {
            bundle: Some(bundle),
        }))
    }

    async fn get_revocation_lists(
        &self,
        _: Request<GetRevocationListsRequest>,
    ) -> Result<Response<GetRevocationListsResponse>, Status> {
        Ok(Response::new(GetRevocationListsResponse {
            lists: self.0.signed_lists().await?,
        }))
    }

    async fn get_roots(
        &self,
        _: Request<GetRootsRequest>,
    ) -> Result<Response<GetRootsResponse>, Status> {
        let status = self.0.roots().await?;
        Ok(Response::new(GetRootsResponse {
            version: status.version,
            roots: status.roots.iter().map(root).collect(),
            next: step_message(status.next).into(),
            waiting_for: status.waiting_for,
            departed: status.departed,
            cut_off: status.cut_off.iter().map(named).collect(),
        }))
    }

    async fn step_roots(
        &self,
        request: Request<StepRootsRequest>,
    ) -> Result<Response<StepRootsResponse>, Status> {
        let by = Call::of(&request)?.actor();
        let message = request.into_inner();
        let required = || AuthError::Field("step", "is required".to_owned());
        let wanted = step(message.step()).ok_or_else(required)?;
        let (version, info) = self.0.step_roots(&by, wanted, message.cut_off).await?;
        Ok(Response::new(StepRootsResponse {
            version,
            root: Some(root(&info)),
        }))
    }
}

/// Parses the key ids of a report.
pub(super) fn key_ids(bytes: &[Vec<u8>]) -> Result<Vec<KeyId>, AuthError> {
    let parse =
        |b: &Vec<u8>| KeyId::from_bytes(b).map_err(|e| AuthError::Field("roots", e.to_string()));
    bytes.iter().map(parse).collect()
}
