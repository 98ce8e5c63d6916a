//! The handlers of signing keys.

use super::Api;
use crate::{
    signing,
    store::{KeyState, SigningKeyRow},
};
use tars_proto::{auth::v1::*, time::timestamp};
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl signing_key_service_server::SigningKeyService for Api {
    async fn get_signing_status(
        &self,
        _: Request<GetSigningStatusRequest>,
    ) -> Result<Response<GetSigningStatusResponse>, Status> {
        let keys = self.0.signing_keys().await?;
        let kids = |wanted: fn(&SigningKeyRow) -> bool| -> Vec<String> {
            let wanted = keys.iter().filter(|k| wanted(k));
            wanted.map(|k| k.kid.clone()).collect()
        };
        let active = kids(|k| k.state == KeyState::Current);
        let valid = kids(|k| matches!(k.state, KeyState::Current | KeyState::Grace));
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
                is_active: k.state == KeyState::Current,
                is_valid: matches!(k.state, KeyState::Current | KeyState::Grace),
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
