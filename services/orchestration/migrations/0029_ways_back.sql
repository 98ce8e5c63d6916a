-- Which versions one may roll back to. Of a bound agent, those that climbed to ACTIVE; of the versions until now
-- that is not known. None that the fall-back took down.
ALTER TABLE checkpoints ADD COLUMN climbed BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE checkpoints ADD COLUMN taken_down BOOLEAN NOT NULL DEFAULT FALSE;
