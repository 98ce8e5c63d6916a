//! Administrators who race one another over REST, and whether every process then holds what the
//! database says.

use crate::raw::{RawCall, read_method};
use bytes::Bytes;
use serde_json::{Value, json};
use std::time::Duration;
use tars::rest::{Rest, RestError};
use tars_interceptors::client::OutgoingService;
use tars_mesh::Channel;
use tars_proto::auth::v1::{GetMeRequest, auth_service_client::AuthServiceClient};
use tokio::time::Instant;
use tonic::{Code, Request, Status};

const RACER: &str = "racer";
/// Nothing takes this long; past it a process is wrong.
const LIMIT: Duration = Duration::from_secs(10);

type Service = OutgoingService<Channel>;

/// Who races, and the services that are asked afterwards.
pub struct Races {
    gateway: Rest,
    admin: Rest,
    services: Vec<(&'static str, Service)>,
    round: usize,
}

/// The state of the user and the key at the end of a round.
#[derive(Debug, Default, Clone, Copy)]
pub struct Outcome {
    /// Whether the user ended up disabled.
    pub disabled: bool,
    /// Whether the key ended up revoked.
    pub revoked: bool,
    /// Whether the key was rotated.
    pub rotated: bool,
    /// From the last reply until every process agreed.
    pub agreed_after: Duration,
}

/// A secret, and whether it works, as the database has it.
struct Expected {
    secret: String,
    works: bool,
}

/// The roles that Auth reports for the owner of a key.
async fn roles(channel: Service, key: &str) -> Result<Vec<String>, Status> {
    let mut request = Request::new(GetMeRequest {});
    let value = key.parse().expect("a key is a header's value");
    request.metadata_mut().insert("x-api-key", value);
    request.set_timeout(LIMIT);
    let me = AuthServiceClient::new(channel).get_me(request).await?;
    Ok(me.into_inner().roles)
}

/// Reads something from a service by a key.
async fn read(service: &str, channel: Service, key: &str) -> Result<(), Status> {
    let call = RawCall {
        method: read_method(service),
        header: Some(("x-api-key", key)),
        message: Bytes::new(),
        timeout: LIMIT,
    };
    match call.send(channel).await {
        // The key was accepted before the message was read.
        Err(status) if status.code() == Code::InvalidArgument => Ok(()),
        other => other,
    }
}

/// Whether a service accepts a key, and the roles that Auth reports for its owner.
async fn accepts(
    service: &str,
    channel: Service,
    key: &str,
) -> Result<(bool, Option<Vec<String>>), Status> {
    let answer = match service {
        "auth" => roles(channel, key).await.map(Some),
        _ => read(service, channel, key).await.map(|()| None),
    };
    match answer {
        Ok(roles) => Ok((true, roles)),
        Err(status) if status.code() == Code::Unauthenticated => Ok((false, None)),
        Err(status) => Err(status),
    }
}

/// A refusal that losing a race explains; everything else is a fault.
fn lost(error: RestError) -> Result<(), RestError> {
    match &error {
        RestError::Refused { status, .. } if matches!(status.as_u16(), 400 | 401 | 409 | 412) => {
            Ok(())
        }
        _ => Err(error),
    }
}

fn named<'a>(list: &'a Value, field: &str, name: &str) -> &'a Value {
    let rows = list.as_array().into_iter().flatten();
    let mut found = rows.filter(|row| row[field] == name);
    found.next().unwrap_or(&Value::Null)
}

impl Races {
    /// Adds the user whose account and keys are raced for.
    pub async fn new(
        gateway: Rest,
        admin: Rest,
        services: Vec<(&'static str, Service)>,
    ) -> Result<Self, RestError> {
        let body = json!({ "username": RACER, "password": crate::PASSWORD, "roles": ["admin"] });
        admin.post("/admin/users", body).await?;
        Ok(Self {
            gateway,
            admin,
            services,
            round: 0,
        })
    }

    /// One round: everybody at once, then everybody is asked.
    pub async fn round(&mut self) -> Result<Outcome, String> {
        self.round += 1;
        self.run()
            .await
            .map_err(|e| format!("round {}: {e}", self.round))
    }

    async fn run(&self) -> Result<Outcome, String> {
        let failed = |e: RestError| e.to_string();
        self.restore().await.map_err(failed)?;
        let racer = self.gateway.login(RACER, crate::PASSWORD).await;
        let racer = racer.map_err(failed)?;
        let body = json!({ "service_name": RACER });
        let key = racer
            .post("/auth/service-token", body)
            .await
            .map_err(failed)?;
        let id = key["key_id"].as_str().unwrap_or_default().to_owned();
        let rotated = self.race(&racer, &id).await.map_err(failed)?;
        let replied = Instant::now();
        let (user, row) = self.stored(&id).await.map_err(failed)?;
        let (enabled, active) = (user["disabled"] != true, row["is_active"] == true);
        let secret = |of: &Value, name: &str| of[name].as_str().unwrap_or_default().to_owned();
        let mut expected = vec![Expected {
            secret: secret(&key, "api_key"),
            works: enabled && active && rotated.is_none(),
        }];
        expected.extend(rotated.iter().map(|r| Expected {
            secret: secret(r, "new_api_key"),
            works: enabled && active,
        }));
        let agreed_after = self.agree(&expected, &user["roles"], replied).await?;
        // What came late must not have come out of order.
        self.agree(&expected, &user["roles"], Instant::now())
            .await?;
        Ok(Outcome {
            disabled: !enabled,
            revoked: !active,
            rotated: rotated.is_some(),
            agreed_after,
        })
    }

    /// As it was before the round.
    async fn restore(&self) -> Result<(), RestError> {
        let enable = format!("/admin/users/{RACER}/enable");
        self.admin.post(&enable, json!({})).await?;
        let roles = format!("/admin/users/{RACER}/roles");
        self.admin
            .put(&roles, json!({ "roles": ["admin"] }))
            .await?;
        Ok(())
    }

    /// Disable against enable against other roles; revoke against rotate. Returns the answer to the
    /// rotation, if it came first.
    async fn race(&self, racer: &Rest, key: &str) -> Result<Option<Value>, RestError> {
        let user = |what: &str| format!("/admin/users/{RACER}/{what}");
        let about_user = self.round % 3 != 1;
        let about_key = self.round % 3 != 2;
        let change = async |path: String, body: Value, wanted: bool| match wanted {
            true => self
                .admin
                .call(method(&path), &path, Some(body))
                .await
                .map(drop)
                .or_else(lost),
            false => Ok(()),
        };
        let rotate = async {
            if !about_key {
                return Ok(None);
            }
            let path = format!("/admin/api-keys/{key}/rotate");
            match racer.post(&path, json!({})).await {
                Ok(answer) => Ok(Some(answer)),
                Err(e) => lost(e).map(|()| None),
            }
        };
        let revoke = format!("/admin/api-keys/{key}/revoke");
        let (disabled, roles, enabled, rotated, revoked) = tokio::join!(
            change(user("disable"), json!({}), about_user),
            change(
                user("roles"),
                json!({ "roles": ["admin", "viewer"] }),
                about_user
            ),
            change(user("enable"), json!({}), about_user),
            rotate,
            change(revoke, json!({ "reason": "race" }), about_key),
        );
        disabled.and(roles).and(enabled).and(revoked)?;
        rotated
    }

    /// What the database says of the user and of the key.
    async fn stored(&self, key: &str) -> Result<(Value, Value), RestError> {
        let users = self.admin.get("/admin/users?page_size=500").await?;
        let keys = self.admin.get("/admin/api-keys?page_size=10").await?;
        let user = named(&users["users"], "username", RACER).clone();
        Ok((user, named(&keys["keys"], "key_id", key).clone()))
    }

    /// Waits until every process takes what the database says is good, and nothing else.
    async fn agree(
        &self,
        expected: &[Expected],
        roles: &Value,
        since: Instant,
    ) -> Result<Duration, String> {
        for (name, channel) in &self.services {
            for secret in expected {
                loop {
                    let (works, seen) = accepts(name, channel.clone(), &secret.secret)
                        .await
                        .map_err(|s| format!("{name}: {s}"))?;
                    let same_roles = seen.is_none_or(|seen| json!(seen) == *roles);
                    if works == secret.works && same_roles {
                        break;
                    }
                    if since.elapsed() > LIMIT {
                        let works = secret.works;
                        return Err(format!(
                            "{name} disagrees: the database says {works}, {roles}"
                        ));
                    }
                }
            }
        }
        Ok(since.elapsed())
    }
}

fn method(path: &str) -> http::Method {
    match path.ends_with("/roles") {
        true => http::Method::PUT,
        false => http::Method::POST,
    }
}
