//! The handlers of users.

use super::{Api, origin};
use crate::sessions::UserSummary;
use tars_interceptors::Call;
use tars_proto::{auth::v1::*, time::timestamp};
use tonic::{Request, Response, Status};

pub(super) fn user(summary: UserSummary) -> User {
    User {
        user_id: summary.id.to_string(),
        username: summary.username,
        roles: summary.roles,
        disabled: summary.disabled,
        created_at: Some(timestamp(summary.created_us)),
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
