-- The reports of training runs: a group of them in each row, under the number of the last one. The numbers of
-- a run begin with 1. Of runs that ended before the newest ones only the last number is kept.
CREATE TABLE run_reports (
    run_id UUID NOT NULL,
    last BIGINT NOT NULL,
    reports TEXT NOT NULL,
    PRIMARY KEY (run_id, last)
);

ALTER TABLE training_runs ADD COLUMN last_report BIGINT NOT NULL DEFAULT 0;
