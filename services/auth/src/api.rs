//! Auth's gRPC handlers: thin translations between messages and the domain.

mod certificates;
mod watch;

#[cfg(test)]
pub(crate) use watch::start as watch_stream;

use crate::{
    Auth, Origin,
    audit::Filter,
    keys::{KeySummary, NewKey},
    sessions::{Tokens, UserSummary},
    signing,
};
use futures_util::Stream;
use std::{pin::Pin, sync::Arc, time::Duration};
use tars_interceptors::Call;
use tars_proto::{
    auth::v1::{self as pb, *},
    time::{micros, timestamp},
};
use tars_runtime::audit::{Record, Severity};
use tonic::{Request, Response, Status, service::Routes};
use uuid::Uuid;

#[derive(Debug, Clone)]
pub struct Api(Arc<Auth>);

/// All of Auth's services. `max_message` is what the listener takes, which refuses larger ones with the
/// contract's status; a lower limit of tonic's own would answer before it.
pub fn routes(auth: Arc<Auth>, max_message: usize) -> Routes {
    let api = Api(auth);
    let mut routes = Routes::builder();
    routes
        .add_service(
            auth_service_server::AuthServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            user_service_server::UserServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            api_key_service_server::ApiKeyServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            signing_key_service_server::SigningKeyServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            audit_service_server::AuditServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            certificate_service_server::CertificateServiceServer::new(api.clone())
                .max_decoding_message_size(max_message),
        )
        .add_service(
            credential_service_server::CredentialServiceServer::new(api)
                .max_decoding_message_size(max_message),
        );
    routes.routes()
}

/// All that the bootstrap listener serves.
pub fn bootstrap_routes(auth: Arc<Auth>, max_message: usize) -> Routes {
    let mut routes = Routes::builder();
    routes.add_service(
        bootstrap_service_server::BootstrapServiceServer::new(Api(auth))
            .max_decoding_message_size(max_message),
    );
    routes.routes()
}

fn origin<T>(request: &Request<T>) -> Result<Origin, Status> {
    let call = Call::of(request)?;
    Ok(Origin::new(call.peer.name(), call.client))
}

fn user(summary: UserSummary) -> User {
    User {
        user_id: summary.id.to_string(),
        username: summary.username,
        roles: summary.roles,
        disabled: summary.disabled,
        created_at: Some(timestamp(summary.created_us)),
    }
}

const BEARER: &str = "bearer";

#[tonic::async_trait]
impl auth_service_server::AuthService for Api {
    async fn login(
        &self,
        request: Request<LoginRequest>,
    ) -> Result<Response<LoginResponse>, Status> {
        let from = origin(&request)?;
        let LoginRequest { username, password } = request.into_inner();
        let password = zeroize::Zeroizing::new(password);
        let (
            summary,
            Tokens {
                access,
                refresh,
                expires_in_s,
            },
        ) = self.0.login(&username, &password, &from).await?;
        Ok(Response::new(LoginResponse {
            access_token: access,
            refresh_token: refresh.to_string(),
            token_type: BEARER.to_owned(),
            expires_in: expires_in_s,
            user: Some(user(summary)),
        }))
    }

    async fn refresh(
        &self,
        request: Request<RefreshRequest>,
    ) -> Result<Response<RefreshResponse>, Status> {
        let from = origin(&request)?;
        let tokens = self
            .0
            .refresh(&request.into_inner().refresh_token, &from)
            .await?;
        Ok(Response::new(RefreshResponse {
            access_token: tokens.access,
            refresh_token: tokens.refresh.to_string(),
            token_type: BEARER.to_owned(),
            expires_in: tokens.expires_in_s,
        }))
    }

    async fn logout(
        &self,
        request: Request<LogoutRequest>,
    ) -> Result<Response<LogoutResponse>, Status> {
        self.0.logout(Call::of(&request)?.require_caller()?).await?;
        Ok(Response::new(LogoutResponse {}))
    }

    async fn get_me(
        &self,
        request: Request<GetMeRequest>,
    ) -> Result<Response<GetMeResponse>, Status> {
        let call = Call::of(&request)?;
        let caller = call.require_caller()?;
        Ok(Response::new(GetMeResponse {
            user_id: caller.owner_id.clone(),
            username: caller.username.clone(),
            roles: caller.roles.clone(),
            permissions: caller
                .permissions
                .names()
                .into_iter()
                .map(str::to_owned)
                .collect(),
        }))
    }

    async fn change_password(
        &self,
        request: Request<ChangePasswordRequest>,
    ) -> Result<Response<ChangePasswordResponse>, Status> {
        let (call, from) = (Call::of(&request)?, origin(&request)?);
        let ChangePasswordRequest {
            current_password,
            new_password,
        } = request.into_inner();
        let (current, new) = (
            zeroize::Zeroizing::new(current_password),
            zeroize::Zeroizing::new(new_password),
        );
        self.0
            .change_password(call.require_caller()?, &from, &current, &new)
            .await?;
        Ok(Response::new(ChangePasswordResponse {}))
    }
}

#[tonic::async_trait]
impl user_service_server::UserService for Api {
    async fn create_user(
        &self,
        request: Request<CreateUserRequest>,
    ) -> Result<Response<CreateUserResponse>, Status> {
        let (call, from) = (Call::of(&request)?, origin(&request)?);
        let CreateUserRequest {
            username,
            password,
            roles,
        } = request.into_inner();
        let password = zeroize::Zeroizing::new(password);
        let caller = call.require_caller()?;
        let created = self
            .0
            .create_user(caller, &from, &username, &password, roles)
            .await?;
        Ok(Response::new(CreateUserResponse {
            user: Some(user(created)),
        }))
    }

    async fn list_users(
        &self,
        request: Request<ListUsersRequest>,
    ) -> Result<Response<ListUsersResponse>, Status> {
        let ListUsersRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let (users, next_page_token) = self.0.list_users(&page_token, page_size).await?;
        Ok(Response::new(ListUsersResponse {
            users: users.into_iter().map(user).collect(),
            next_page_token,
        }))
    }

    async fn disable_user(
        &self,
        request: Request<DisableUserRequest>,
    ) -> Result<Response<DisableUserResponse>, Status> {
        let call = Call::of(&request)?;
        let username = request.into_inner().username;
        let changed = self
            .0
            .set_disabled(call.require_caller()?, &username, true)
            .await?;
        Ok(Response::new(DisableUserResponse {
            user: Some(user(changed)),
        }))
    }

    async fn enable_user(
        &self,
        request: Request<EnableUserRequest>,
    ) -> Result<Response<EnableUserResponse>, Status> {
        let call = Call::of(&request)?;
        let username = request.into_inner().username;
        let changed = self
            .0
            .set_disabled(call.require_caller()?, &username, false)
            .await?;
        Ok(Response::new(EnableUserResponse {
            user: Some(user(changed)),
        }))
    }

    async fn set_user_roles(
        &self,
        request: Request<SetUserRolesRequest>,
    ) -> Result<Response<SetUserRolesResponse>, Status> {
        let call = Call::of(&request)?;
        let SetUserRolesRequest { username, roles } = request.into_inner();
        let caller = call.require_caller()?;
        let changed = self.0.set_roles(caller, &username, roles).await?;
        Ok(Response::new(SetUserRolesResponse {
            user: Some(user(changed)),
        }))
    }
}

fn api_key(summary: KeySummary, now_us: i64) -> pb::ApiKey {
    pb::ApiKey {
        key_id: summary.id,
        service_name: summary.service_name,
        owner: summary.owner_id.to_string(),
        scopes: summary.scopes,
        created_at: Some(timestamp(summary.created_us)),
        expires_at: Some(timestamp(summary.expires_us)),
        revoked_at: summary.revoked_us.map(timestamp),
        is_active: summary.revoked_us.is_none() && now_us < summary.expires_us,
    }
}

#[tonic::async_trait]
impl api_key_service_server::ApiKeyService for Api {
    async fn create_api_key(
        &self,
        request: Request<CreateApiKeyRequest>,
    ) -> Result<Response<CreateApiKeyResponse>, Status> {
        let call = Call::of(&request)?;
        let CreateApiKeyRequest {
            service_name,
            scopes,
            expires_in_days,
        } = request.into_inner();
        let created = self
            .0
            .create_key(
                call.require_caller()?,
                &service_name,
                &scopes,
                expires_in_days,
            )
            .await?;
        let NewKey {
            id,
            text,
            service_name,
            created_us,
            expires_us,
        } = created;
        Ok(Response::new(CreateApiKeyResponse {
            key_id: id,
            api_key: text.to_string(),
            service_name,
            created_at: Some(timestamp(created_us)),
            expires_at: Some(timestamp(expires_us)),
        }))
    }

    async fn list_api_keys(
        &self,
        request: Request<ListApiKeysRequest>,
    ) -> Result<Response<ListApiKeysResponse>, Status> {
        let ListApiKeysRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let (keys, next_page_token) = self.0.list_keys(&page_token, page_size).await?;
        let now_us = self.0.clock.now_us();
        let keys = keys.into_iter().map(|k| api_key(k, now_us)).collect();
        Ok(Response::new(ListApiKeysResponse {
            keys,
            next_page_token,
        }))
    }

    async fn rotate_api_key(
        &self,
        request: Request<RotateApiKeyRequest>,
    ) -> Result<Response<RotateApiKeyResponse>, Status> {
        let call = Call::of(&request)?;
        let RotateApiKeyRequest {
            key_id,
            overlap_seconds,
        } = request.into_inner();
        let overlap = Duration::from_secs(u64::from(overlap_seconds));
        let key = self
            .0
            .rotate_key(call.require_caller()?, &key_id, overlap)
            .await?;
        Ok(Response::new(RotateApiKeyResponse {
            key_id: key.id,
            new_api_key: key.text.to_string(),
            service_name: key.service_name,
            expires_at: Some(timestamp(key.expires_us)),
        }))
    }

    async fn revoke_api_key(
        &self,
        request: Request<RevokeApiKeyRequest>,
    ) -> Result<Response<RevokeApiKeyResponse>, Status> {
        let call = Call::of(&request)?;
        let RevokeApiKeyRequest { key_id, reason } = request.into_inner();
        self.0
            .revoke_key(call.require_caller()?, &key_id, &reason)
            .await?;
        Ok(Response::new(RevokeApiKeyResponse { key_id }))
    }
}

#[tonic::async_trait]
impl signing_key_service_server::SigningKeyService for Api {
    async fn get_signing_status(
        &self,
        _: Request<GetSigningStatusRequest>,
    ) -> Result<Response<GetSigningStatusResponse>, Status> {
        let keys = self.0.signing_keys().await?;
        let kids = |wanted: &[&str]| -> Vec<String> {
            keys.iter()
                .filter(|k| wanted.contains(&k.state.as_str()))
                .map(|k| k.kid.clone())
                .collect()
        };
        let (active, valid) = (kids(&["current"]), kids(&["current", "grace"]));
        Ok(Response::new(GetSigningStatusResponse {
            current_kid: self.0.signer.kid().to_owned(),
            total_active: u32::try_from(active.len()).unwrap_or(u32::MAX),
            total_valid: u32::try_from(valid.len()).unwrap_or(u32::MAX),
            active_keys: active,
            valid_keys: valid,
        }))
    }

    async fn list_signing_keys(
        &self,
        _: Request<ListSigningKeysRequest>,
    ) -> Result<Response<ListSigningKeysResponse>, Status> {
        let rows = self.0.signing_keys().await?;
        let keys: Vec<SigningKey> = rows
            .into_iter()
            .map(|k| SigningKey {
                algorithm: "EdDSA".to_owned(),
                created_at: Some(timestamp(k.created_us)),
                expires_at: k.expires_us.map(timestamp),
                is_active: k.state == "current",
                is_valid: matches!(k.state.as_str(), "current" | "grace"),
                kid: k.kid,
            })
            .collect();
        Ok(Response::new(ListSigningKeysResponse {
            current_kid: self.0.signer.kid().to_owned(),
            total: u32::try_from(keys.len()).unwrap_or(u32::MAX),
            keys,
        }))
    }

    async fn get_jwks(
        &self,
        _: Request<GetJwksRequest>,
    ) -> Result<Response<GetJwksResponse>, Status> {
        let keys = self.0.signing_keys().await?;
        let keys = keys.iter().map(signing::jwk).collect();
        Ok(Response::new(GetJwksResponse { keys }))
    }
}

fn event(record: Record) -> AuditEvent {
    AuditEvent {
        event_id: record.event_id.to_string(),
        timestamp: Some(timestamp(record.at_us)),
        event_type: record.event_type,
        severity: record.severity.as_str().to_owned(),
        service: record.service,
        peer: record.peer,
        caller: record.caller,
        method: record.method,
        resource: record.resource,
        result: record.result,
        trace_id: record.trace_id,
        details: record.details,
    }
}

fn record(event: AuditEvent, service: &str) -> Result<Record, Status> {
    let bad = |field: &str| tars_proto::fault::invalid_field(field, "is not an audit record's");
    let severity = match event.severity.as_str() {
        "info" => Severity::Info,
        "warning" => Severity::Warning,
        "error" => Severity::Error,
        "critical" => Severity::Critical,
        _ => return Err(bad("events.severity")),
    };
    Ok(Record {
        event_id: Uuid::try_parse(&event.event_id).map_err(|_| bad("events.event_id"))?,
        at_us: event
            .timestamp
            .as_ref()
            .map(micros)
            .ok_or_else(|| bad("events.timestamp"))?,
        event_type: event.event_type,
        severity,
        // A service speaks for itself only.
        service: service.to_owned(),
        peer: event.peer,
        caller: event.caller,
        method: event.method,
        resource: event.resource,
        result: event.result,
        trace_id: event.trace_id,
        details: event.details,
    })
}

#[tonic::async_trait]
impl audit_service_server::AuditService for Api {
    async fn list_audit_events(
        &self,
        request: Request<ListAuditEventsRequest>,
    ) -> Result<Response<ListAuditEventsResponse>, Status> {
        let asked = request.into_inner();
        let filter = Filter {
            event_type: asked.event_type,
            caller: asked.caller,
            service: asked.service,
            from_us: asked.start_time.as_ref().map(micros),
            to_us: asked.end_time.as_ref().map(micros),
        };
        let (records, next_page_token) = self
            .0
            .list_audit(&filter, &asked.page_token, asked.page_size)
            .await?;
        Ok(Response::new(ListAuditEventsResponse {
            events: records.into_iter().map(event).collect(),
            next_page_token,
        }))
    }

    async fn append_audit_events(
        &self,
        request: Request<AppendAuditEventsRequest>,
    ) -> Result<Response<AppendAuditEventsResponse>, Status> {
        let class = Call::of(&request)?.peer_class();
        let service = class
            .ok_or_else(|| Status::internal("the peer policy lets only known classes in"))?
            .as_str();
        let events = request.into_inner().events;
        let records = events
            .into_iter()
            .map(|e| record(e, service))
            .collect::<Result<Vec<_>, _>>()?;
        self.0.append_audit(&records).await?;
        Ok(Response::new(AppendAuditEventsResponse {}))
    }
}

type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchCredentialsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl credential_service_server::CredentialService for Api {
    type WatchCredentialsStream = WatchStream;

    async fn watch_credentials(
        &self,
        request: Request<WatchCredentialsRequest>,
    ) -> Result<Response<WatchStream>, Status> {
        let after = request.into_inner().after_sequence;
        let watch = watch::start(&self.0, after).await?;
        Ok(Response::new(Box::pin(watch)))
    }

    async fn report_trust(
        &self,
        request: Request<ReportTrustRequest>,
    ) -> Result<Response<ReportTrustResponse>, Status> {
        let call = Call::of(&request)?;
        let ReportTrustRequest {
            instance,
            roots,
            leaving,
        } = request.into_inner();
        let instance = Uuid::try_parse(&instance)
            .map_err(|e| tars_proto::fault::invalid_field("instance", &e.to_string()))?;
        let roots = certificates::key_ids(&roots)?;
        let peer = certificates::verified(&call)?;
        match leaving {
            true => self.0.withdraw_trust(peer, instance).await?,
            false => self.0.report_trust(peer, instance, &roots).await?,
        }
        Ok(Response::new(ReportTrustResponse {}))
    }
}
