CREATE TABLE studies (
    id UUID PRIMARY KEY,
    agent_id TEXT NOT NULL,
    agent_type TEXT NOT NULL,
    environment TEXT NOT NULL,
    state TEXT NOT NULL,
    server_run BOOLEAN NOT NULL,
    sampler TEXT NOT NULL,
    pruner TEXT NOT NULL,
    n_trials BIGINT NOT NULL,
    space TEXT NOT NULL,
    seed BIGINT NOT NULL,
    steps BIGINT NOT NULL,
    owner TEXT NOT NULL,
    error TEXT NOT NULL,
    traceparent TEXT NOT NULL,
    started_us BIGINT NOT NULL,
    completed_us BIGINT
);
CREATE INDEX studies_by_state ON studies (state);

CREATE TABLE trials (
    study_id UUID NOT NULL REFERENCES studies (id),
    number BIGINT NOT NULL,
    state TEXT NOT NULL,
    parameters TEXT NOT NULL,
    score DOUBLE PRECISION,
    intermediate TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    error TEXT NOT NULL,
    started_us BIGINT NOT NULL,
    ended_us BIGINT,
    PRIMARY KEY (study_id, number)
);
