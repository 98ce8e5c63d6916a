-- The agents that each training run trains, in the order of their environment. The runs so far trained one each.
CREATE TABLE run_members (
    run_id UUID NOT NULL,
    position BIGINT NOT NULL,
    agent_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    final_return DOUBLE PRECISION,
    weights_version BIGINT,
    PRIMARY KEY (run_id, position)
);

INSERT INTO run_members (run_id, position, agent_id, algorithm, final_return, weights_version)
SELECT training_runs.id, 0, training_runs.agent_id,
    COALESCE((SELECT agents.algorithm FROM agents WHERE agents.id = training_runs.agent_id), ''),
    training_runs.final_return,
    (SELECT MIN(checkpoints.version) FROM checkpoints WHERE checkpoints.run_id = training_runs.id)
FROM training_runs;

ALTER TABLE training_runs ADD COLUMN environment TEXT NOT NULL DEFAULT '';
ALTER TABLE training_runs ADD COLUMN others TEXT NOT NULL DEFAULT 'rules';
-- Steps a second.
ALTER TABLE training_runs ADD COLUMN rate DOUBLE PRECISION;

UPDATE training_runs SET environment = (SELECT agents.environment FROM agents WHERE agents.id = training_runs.agent_id)
WHERE EXISTS (SELECT 1 FROM agents WHERE agents.id = training_runs.agent_id);

-- The policies that the agents of unfinished runs began with: those that learners continue from, and the
-- frozen ones of the agents that do not learn.
CREATE TABLE run_policies (
    run_id UUID NOT NULL,
    agent_id TEXT NOT NULL,
    blob TEXT NOT NULL,
    PRIMARY KEY (run_id, agent_id)
);

INSERT INTO run_policies (run_id, agent_id, blob)
SELECT run_plans.run_id, training_runs.agent_id, run_plans.start_blob
FROM run_plans JOIN training_runs ON training_runs.id = run_plans.run_id WHERE run_plans.start_blob IS NOT NULL;

-- The versions of the hyperparameters that the learners followed at the checkpoint, as a JSON list.
ALTER TABLE run_plans ADD COLUMN versions TEXT NOT NULL DEFAULT '[]';
UPDATE run_plans SET versions = '[' || CAST(version AS TEXT) || ']';
ALTER TABLE run_plans DROP COLUMN version;
ALTER TABLE run_plans DROP COLUMN start_blob;

DROP INDEX training_runs_unfinished;
CREATE INDEX training_runs_unfinished ON training_runs (id)
    WHERE state IN ('queued', 'running', 'pausing', 'cancelling', 'installing');

-- How many runs are paused is bounded.
CREATE INDEX training_runs_paused ON training_runs (id) WHERE state = 'paused';
