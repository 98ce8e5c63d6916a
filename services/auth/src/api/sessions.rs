//! The handlers of sessions: login, refresh, logout, and the password.

use super::{Api, origin, users::user};
use crate::sessions::Tokens;
use tars_interceptors::Call;
use tars_proto::auth::v1::*;
use tonic::{Request, Response, Status};

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
