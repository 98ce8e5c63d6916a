-- What the training runs that have not ended do, and their newest checkpoints, so that another process can
-- resume them. Reports beyond the checkpoint's are the same when they are made again.
CREATE TABLE run_plans (
    run_id UUID PRIMARY KEY,
    plan TEXT NOT NULL,
    start_blob TEXT,
    checkpoint_blob TEXT,
    reported BIGINT NOT NULL,
    version BIGINT NOT NULL
);
