CREATE TABLE agent_holds (
    agent_id TEXT PRIMARY KEY,
    change_id TEXT NOT NULL,
    on_behalf_of TEXT NOT NULL,
    since_us BIGINT NOT NULL
);

CREATE TABLE agent_approvals (
    agent_id TEXT PRIMARY KEY,
    hyperparameters TEXT NOT NULL,
    version BIGINT NOT NULL,
    change_id TEXT NOT NULL,
    at_us BIGINT NOT NULL
);

ALTER TABLE training_runs ADD COLUMN running_us BIGINT;
