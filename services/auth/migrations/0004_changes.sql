-- Changes of what is valid, in the order in which they were committed. The counter's row is locked from
-- the change to its commit: whoever reads committed rows in order never passes a gap.
CREATE TABLE credential_position (id BIGINT PRIMARY KEY, last BIGINT NOT NULL);
INSERT INTO credential_position (id, last) VALUES (1, 0);
CREATE TABLE credential_changes (seq BIGINT PRIMARY KEY, item BYTEA NOT NULL);

-- `version` counts every change of a user; tokens with a lower `token_version` are refused, but for
-- those of the kept session.
ALTER TABLE users ADD COLUMN token_version BIGINT NOT NULL DEFAULT 1;
ALTER TABLE users ADD COLUMN kept_session UUID;
UPDATE users SET token_version = version;

ALTER TABLE sessions ADD COLUMN revoked_us BIGINT;
CREATE INDEX sessions_by_end ON sessions (ends_us);
CREATE INDEX refresh_tokens_by_end ON refresh_tokens (expires_us);
CREATE INDEX refresh_tokens_by_session ON refresh_tokens (session_id);
