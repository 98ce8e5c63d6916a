CREATE TABLE agents (
    id TEXT PRIMARY KEY,
    hyperparameters TEXT NOT NULL,
    version BIGINT NOT NULL,
    weights TEXT,
    weights_version BIGINT NOT NULL,
    last_return DOUBLE PRECISION,
    total_steps BIGINT NOT NULL,
    total_episodes BIGINT NOT NULL,
    updated_us BIGINT NOT NULL
);

CREATE TABLE applied_operations (
    id TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    at_us BIGINT NOT NULL
);

CREATE TABLE training_runs (
    id UUID PRIMARY KEY,
    agent_id TEXT NOT NULL,
    state TEXT NOT NULL,
    steps BIGINT NOT NULL,
    steps_done BIGINT NOT NULL,
    episodes_done BIGINT NOT NULL,
    seed BIGINT NOT NULL,
    final_return DOUBLE PRECISION,
    error TEXT NOT NULL,
    started_us BIGINT NOT NULL,
    ended_us BIGINT
);
