-- Worlds that callers step: the state of each after its last step. A session that has not been used for a day
-- is deleted with its steps.
CREATE TABLE sessions (
    id UUID PRIMARY KEY,
    owner TEXT NOT NULL,
    environment TEXT NOT NULL,
    seed BIGINT NOT NULL,
    steps BIGINT NOT NULL,
    episode BIGINT NOT NULL,
    episode_steps BIGINT NOT NULL,
    created_us BIGINT NOT NULL,
    used_us BIGINT NOT NULL,
    closed_us BIGINT,
    world BYTEA NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX sessions_of_owner ON sessions (owner, id);
CREATE INDEX sessions_used ON sessions (used_us);

-- The steps of sessions, numbered over all sessions as they were taken. Only the newest are retained, of each
-- session and of all.
CREATE TABLE session_steps (
    number BIGINT PRIMARY KEY,
    session_id UUID NOT NULL,
    step BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE UNIQUE INDEX session_steps_of_session ON session_steps (session_id, step);

-- How far the agents were from an equilibrium, numbered as it was measured. Only the newest are retained.
CREATE TABLE nash_points (
    number BIGINT PRIMARY KEY,
    at_us BIGINT NOT NULL,
    environment TEXT NOT NULL,
    value DOUBLE PRECISION NOT NULL,
    low DOUBLE PRECISION NOT NULL,
    high DOUBLE PRECISION NOT NULL,
    body TEXT NOT NULL
);
