CREATE TABLE proposals (
    id UUID PRIMARY KEY,
    agent_id TEXT NOT NULL,
    state TEXT NOT NULL,
    revision BIGINT NOT NULL,
    proposer_owner TEXT NOT NULL,
    document TEXT NOT NULL
);
CREATE INDEX proposals_by_state ON proposals (state);
