-- Who made each join token that has not expired, and for whom: it ends with its maker's permission, and
-- when the identity is revoked. Tokens that the authority made on its files are not here.
CREATE TABLE join_tokens (
    id TEXT PRIMARY KEY,
    spiffe_id TEXT NOT NULL,
    maker UUID NOT NULL,
    -- The API key that the maker called with; empty for a session.
    api_key TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    expires_us BIGINT NOT NULL,
    revoked BOOLEAN NOT NULL
);
CREATE INDEX join_tokens_spiffe_id ON join_tokens (spiffe_id);
