-- Where each retained version of an agent's weights comes from. A version that was made live again has the
-- policy, the run and the mean return of the version that it was restored from.
ALTER TABLE checkpoints ADD COLUMN run_id UUID;
ALTER TABLE checkpoints ADD COLUMN mean_return DOUBLE PRECISION;
ALTER TABLE checkpoints ADD COLUMN algorithm TEXT NOT NULL DEFAULT 'dqn';
ALTER TABLE checkpoints ADD COLUMN restored_from BIGINT;

UPDATE checkpoints SET algorithm = (SELECT agents.algorithm FROM agents WHERE agents.id = checkpoints.agent_id)
WHERE EXISTS (SELECT 1 FROM agents WHERE agents.id = checkpoints.agent_id);

-- The mean return of older versions is not known any more.
UPDATE checkpoints SET mean_return = (SELECT agents.last_return FROM agents
WHERE agents.id = checkpoints.agent_id AND agents.weights_version = checkpoints.version);
