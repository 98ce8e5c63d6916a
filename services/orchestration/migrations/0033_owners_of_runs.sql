-- For whom a run takes its steps: what is counted of it, and what it may still take.
ALTER TABLE training_runs ADD COLUMN owner TEXT NOT NULL DEFAULT '';
CREATE INDEX training_runs_by_owner ON training_runs (owner, state);
