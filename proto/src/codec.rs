//! The codec of every generated client and server: a message that does not decode, or violates a constraint of
//! its fields, is refused here, before a handler sees it.

use crate::{
    fault, reason,
    validate::{Path, Validate, Violations},
};
use bytes::Buf;
use prost::Message;
use std::marker::PhantomData;
use tonic::{
    Code, Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Most messages are small; tonic's default of 8 KiB per call mostly costs page faults.
const BUFFER: usize = 1024;
const YIELD_THRESHOLD: usize = 32 * 1024;

/// Encodes messages of the type `E`, and decodes and validates those of the type `D`.
#[derive(Debug)]
pub struct ValidatingCodec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for ValidatingCodec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E, D> Codec for ValidatingCodec<E, D>
where
    E: Message + 'static,
    D: Message + Validate + Default + 'static,
{
    type Encode = E;
    type Decode = D;
    type Encoder = ProstEncoder<E>;
    type Decoder = ValidatingDecoder<D>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ValidatingDecoder(PhantomData)
    }
}

/// Encodes messages.
#[derive(Debug)]
pub struct ProstEncoder<E>(PhantomData<E>);

impl<E: Message> Encoder for ProstEncoder<E> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, item: E, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(dst)
            .map_err(|e| Status::internal(format!("cannot encode the message: {e}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD_THRESHOLD)
    }
}

/// Decodes and validates messages.
#[derive(Debug)]
pub struct ValidatingDecoder<D>(PhantomData<D>);

impl<D: Message + Validate + Default> Decoder for ValidatingDecoder<D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        decode(src).map(Some)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD_THRESHOLD)
    }
}

fn decode<D: Message + Validate + Default>(src: impl Buf) -> Result<D, Status> {
    let message = D::decode(src).map_err(|e| {
        fault::status(
            Code::InvalidArgument,
            reason::MALFORMED_MESSAGE,
            &format!("the message does not decode: {e}"),
        )
    })?;
    let mut violations = Violations::default();
    message.validate(&Path::ROOT, &mut violations);
    match violations.into_status() {
        Some(refusal) => Err(refusal),
        None => Ok(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{auth::v1 as auth, orchestration::v1 as orchestration};
    use tonic_types::StatusExt;

    fn refusal<M: Message + Validate + Default + std::fmt::Debug>(message: &M) -> Status {
        decode::<M>(message.encode_to_vec().as_slice()).unwrap_err()
    }

    fn fields(status: &Status) -> Vec<String> {
        let details = status.get_details_bad_request().unwrap();
        details
            .field_violations
            .into_iter()
            .map(|v| v.field)
            .collect()
    }

    #[test]
    fn garbage_is_refused_as_an_invalid_argument() {
        let status = decode::<auth::LoginRequest>([0xff, 0xff, 0xff].as_slice()).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }

    #[test]
    fn a_whole_view_of_credentials_has_as_many_as_there_are() {
        let view = auth::WatchCredentialsResponse {
            api_keys: vec![auth::KeyView::default(); 5000],
            users: vec![auth::UserView::default(); 5000],
            revoked_sessions: vec![auth::SessionView::default(); 5000],
            revoked_certificates: vec![auth::CertificateRevocation::default(); 5000],
            revoked_identities: vec![auth::IdentityRevocation::default(); 5000],
            ..Default::default()
        };
        let bytes = view.encode_to_vec();
        let decoded = decode::<auth::WatchCredentialsResponse>(bytes.as_slice());
        assert_eq!(decoded.unwrap(), view);
    }

    #[test]
    fn every_violated_field_is_named() {
        let status = refusal(&auth::CreateUserRequest {
            username: "Not A Name".into(),
            password: "short".into(),
            roles: vec!["viewer".into(), "BAD".into()],
        });
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(fields(&status), ["username", "password", "roles[1]"]);
    }

    #[test]
    fn missing_oversized_and_nul_texts_are_refused() {
        assert_eq!(
            fields(&refusal(&auth::LoginRequest::default())),
            ["username", "password"]
        );
        for bad in ["a\0b".to_owned(), "x".repeat(65)] {
            let request = auth::LoginRequest {
                username: bad,
                password: "p".into(),
            };
            assert_eq!(fields(&refusal(&request)), ["username"]);
        }
    }

    #[test]
    fn numbers_must_be_finite() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let request = orchestration::StepRequest {
                policy_state: Some(orchestration::Observation {
                    agent_type: None,
                    state_vector: vec![0.0, bad],
                }),
                ..Default::default()
            };
            assert_eq!(fields(&refusal(&request)), ["policy_state.state_vector[1]"]);
        }
    }

    #[test]
    fn what_a_choice_has_is_checked_inside() {
        use orchestration::{AgentProgress, evaluate_hyperparameters_response::Event};
        let agents = vec![AgentProgress {
            mean_return: Some(f64::NAN),
            ..Default::default()
        }];
        let progress = orchestration::TrainingProgress {
            agents,
            ..Default::default()
        };
        let result = orchestration::EvaluationResult {
            std_return: f64::INFINITY,
            ..Default::default()
        };
        for (event, field) in [
            (Event::Progress(progress), "progress.agents[0].mean_return"),
            (Event::Result(result), "result.std_return"),
        ] {
            let item = orchestration::EvaluateHyperparametersResponse {
                sequence: 1,
                event: Some(event),
            };
            assert_eq!(fields(&refusal(&item)), [field]);
        }
    }

    #[test]
    fn structs_are_checked_inside() {
        let value = prost_types::Value {
            kind: Some(prost_types::value::Kind::NumberValue(f64::NAN)),
        };
        let request = orchestration::ReloadAgentRequest {
            agent_id: "policy".into(),
            hyperparameters: Some(prost_types::Struct {
                fields: [("gamma".to_owned(), value)].into(),
            }),
            ..Default::default()
        };
        assert_eq!(fields(&refusal(&request)), ["hyperparameters[gamma]"]);
    }

    #[test]
    fn structs_have_at_most_what_their_field_allows() {
        let one = |n: usize| {
            (
                format!("p{n}"),
                prost_types::Value {
                    kind: Some(prost_types::value::Kind::BoolValue(true)),
                },
            )
        };
        let request = |n: usize| orchestration::ReloadAgentRequest {
            agent_id: "policy".into(),
            hyperparameters: Some(prost_types::Struct {
                fields: (0..n).map(one).collect(),
            }),
            ..Default::default()
        };
        assert_eq!(fields(&refusal(&request(65))), ["hyperparameters"]);
        assert!(
            decode::<orchestration::ReloadAgentRequest>(request(64).encode_to_vec().as_slice())
                .is_ok()
        );
    }

    #[test]
    fn good_messages_pass() {
        let request = auth::LoginRequest {
            username: "ada".into(),
            password: "p".into(),
        };
        assert_eq!(
            decode::<auth::LoginRequest>(request.encode_to_vec().as_slice()).unwrap(),
            request
        );
    }
}
