CREATE TABLE conflicts (
    number BIGINT PRIMARY KEY,
    step_id TEXT NOT NULL,
    at_us BIGINT NOT NULL,
    body TEXT NOT NULL
);
