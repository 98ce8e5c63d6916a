-- How far the last stored checkpoint of a run is; not known of runs from before it was recorded.
ALTER TABLE training_runs ADD COLUMN checkpoint_step BIGINT;
