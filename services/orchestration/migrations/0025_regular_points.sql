-- Whether a distance is of the game that is always measured, so that it can be compared with the others that are.
-- What was measured is not known of the points until now.
ALTER TABLE nash_points ADD COLUMN regular BOOLEAN NOT NULL DEFAULT FALSE;
