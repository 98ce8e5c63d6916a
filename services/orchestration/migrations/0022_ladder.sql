-- The versions of an agent that is bound to the live mesh climb from SIM to ACTIVE. The agent's row names those
-- in SHADOW and CANARY; the live one is ACTIVE.
ALTER TABLE agents ADD COLUMN shadow BIGINT;
ALTER TABLE agents ADD COLUMN canary BIGINT;

-- Whether a version is ACTIVE or was. Until now every version was.
ALTER TABLE checkpoints ADD COLUMN served BOOLEAN NOT NULL DEFAULT TRUE;

-- How a version compares with what it would replace.
CREATE TABLE comparisons (
    agent_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    at_us BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (agent_id, version)
);

-- What a version did in SHADOW and in CANARY, at all replicas.
CREATE TABLE trials (
    agent_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    shadow_steps BIGINT NOT NULL,
    agreed BIGINT NOT NULL,
    canary_steps BIGINT NOT NULL,
    blocked BIGINT NOT NULL,
    PRIMARY KEY (agent_id, version)
);
