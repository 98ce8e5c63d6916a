-- The training steps that a measurement of a proposal takes in all, and those that its owner was charged for. There
-- is a row as long as the measurement may go on.
CREATE TABLE measured_steps (
    proposal_id UUID NOT NULL,
    purpose TEXT NOT NULL,
    owner_id TEXT NOT NULL,
    steps BIGINT NOT NULL,
    taken BIGINT NOT NULL,
    PRIMARY KEY (proposal_id, purpose)
);
CREATE INDEX measured_steps_by_owner ON measured_steps (owner_id);
