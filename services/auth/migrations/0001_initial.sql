CREATE TABLE users (
    id UUID PRIMARY KEY,
    username TEXT NOT NULL UNIQUE,
    password TEXT NOT NULL,
    roles TEXT NOT NULL,
    disabled BOOLEAN NOT NULL,
    version BIGINT NOT NULL,
    created_us BIGINT NOT NULL
);

CREATE TABLE sessions (
    id UUID PRIMARY KEY,
    user_id UUID NOT NULL REFERENCES users (id),
    created_us BIGINT NOT NULL,
    ends_us BIGINT NOT NULL,
    revoked BOOLEAN NOT NULL
);
CREATE INDEX sessions_by_user ON sessions (user_id);

CREATE TABLE refresh_tokens (
    hash BYTEA PRIMARY KEY,
    session_id UUID NOT NULL REFERENCES sessions (id),
    expires_us BIGINT NOT NULL,
    used_us BIGINT,
    used_by TEXT
);

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    service_name TEXT NOT NULL,
    owner_id UUID NOT NULL REFERENCES users (id),
    scopes TEXT NOT NULL,
    secrets TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    expires_us BIGINT NOT NULL,
    revoked_us BIGINT,
    version BIGINT NOT NULL
);
CREATE INDEX api_keys_by_age ON api_keys (created_us, id);

CREATE TABLE signing_keys (
    kid TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    public_x TEXT NOT NULL,
    private_sealed BYTEA NOT NULL,
    created_us BIGINT NOT NULL,
    expires_us BIGINT
);

CREATE TABLE audit_log (
    seq BIGINT PRIMARY KEY,
    event_id UUID NOT NULL UNIQUE,
    at_us BIGINT NOT NULL,
    event_type TEXT NOT NULL,
    service TEXT NOT NULL,
    caller TEXT NOT NULL,
    record TEXT NOT NULL
);
CREATE TABLE audit_log_position (id BIGINT PRIMARY KEY, last BIGINT NOT NULL);
INSERT INTO audit_log_position (id, last) VALUES (1, 0);
