-- Whose steps and measured distances these are: the newest are retained of each owner, so that nobody takes the
-- places of others. The measurements that the service makes are its own; whose the others were is not known.
ALTER TABLE session_steps ADD COLUMN owner TEXT NOT NULL DEFAULT '';
UPDATE session_steps SET owner = COALESCE(
    (SELECT sessions.owner FROM sessions WHERE sessions.id = session_steps.session_id), '');
CREATE INDEX session_steps_of_owner ON session_steps (owner, number);

ALTER TABLE nash_points ADD COLUMN owner TEXT NOT NULL DEFAULT '';
UPDATE nash_points SET owner = 'nash' WHERE regular;
CREATE INDEX nash_points_of_owner ON nash_points (owner, regular, number);
