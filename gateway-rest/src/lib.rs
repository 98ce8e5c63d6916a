//! The REST bridge: transcoder, SSE, OpenAPI.
