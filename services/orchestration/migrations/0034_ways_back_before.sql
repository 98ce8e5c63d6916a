-- Versions of before it was recorded who climbed: one that was made ACTIVE from a version that had answered the steps
-- which the ladder asks for in CANARY has climbed, unless it fell.
UPDATE checkpoints SET climbed = TRUE
WHERE served AND NOT climbed AND NOT taken_down AND restored_from IS NOT NULL AND blob IS NOT NULL
AND NOT EXISTS (
    SELECT 1 FROM trials WHERE trials.agent_id = checkpoints.agent_id AND trials.version = checkpoints.version
    AND trials.fell IS NOT NULL
)
AND EXISTS (
    SELECT 1 FROM trials JOIN checkpoints AS tried ON tried.agent_id = trials.agent_id AND tried.version = trials.version
    WHERE tried.agent_id = checkpoints.agent_id AND tried.blob = checkpoints.blob
    AND tried.version < checkpoints.version AND trials.canary_steps >= 200
);
