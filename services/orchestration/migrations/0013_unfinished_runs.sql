-- Every replica looks for runs that no process follows any more, all the time.
CREATE INDEX training_runs_unfinished ON training_runs (agent_id)
    WHERE state IN ('queued', 'running', 'cancelling', 'installing');
