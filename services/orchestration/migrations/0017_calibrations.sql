-- The calibrations of the mesh's model, numbered as they were made. Only the newest are retained.
CREATE TABLE calibrations (
    number BIGINT PRIMARY KEY,
    at_us BIGINT NOT NULL,
    body TEXT NOT NULL
);
