//! The handlers of API keys.

use super::Api;
use crate::keys::{KeySummary, NewKey};
use std::time::Duration;
use tars_interceptors::Call;
use tars_proto::{
    auth::v1::{self as pb, *},
    time::timestamp,
};
use tonic::{Request, Response, Status};

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
