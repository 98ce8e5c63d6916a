-- The changes of a study are numbered: each trial has the number of its last one, and the end of the study
-- the last number of all.
ALTER TABLE studies ADD COLUMN events BIGINT NOT NULL DEFAULT 0;
ALTER TABLE trials ADD COLUMN event BIGINT NOT NULL DEFAULT 0;
UPDATE trials SET event = number + 1;
UPDATE studies SET events = (SELECT COUNT(*) FROM trials WHERE trials.study_id = studies.id)
    + CASE state WHEN 'running' THEN 0 ELSE 1 END;
CREATE INDEX trials_by_event ON trials (study_id, event);
