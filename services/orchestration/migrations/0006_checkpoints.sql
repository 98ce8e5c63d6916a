-- The versions of each agent's weights that are retained.
CREATE TABLE checkpoints (
    agent_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    blob TEXT NOT NULL,
    at_us BIGINT NOT NULL,
    PRIMARY KEY (agent_id, version)
);

INSERT INTO checkpoints (agent_id, version, blob, at_us)
SELECT id, weights_version, weights, updated_us FROM agents WHERE weights IS NOT NULL;
