-- A version of an agent's answers is a policy that was trained, or one of the agent's rules.
CREATE TABLE versions (
    agent_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    blob TEXT,
    rule TEXT,
    at_us BIGINT NOT NULL,
    algorithm TEXT NOT NULL,
    run_id UUID,
    mean_return DOUBLE PRECISION,
    restored_from BIGINT,
    PRIMARY KEY (agent_id, version),
    CHECK ((blob IS NULL) <> (rule IS NULL))
);

INSERT INTO versions (agent_id, version, blob, at_us, algorithm, run_id, mean_return, restored_from)
SELECT agent_id, version, blob, at_us, algorithm, run_id, mean_return, restored_from FROM checkpoints;

DROP TABLE checkpoints;
ALTER TABLE versions RENAME TO checkpoints;

ALTER TABLE agents ADD COLUMN rule TEXT;
