-- Proposals that have ended, and of which Orchestration was not told yet what came of them.
CREATE TABLE unrecorded_decisions (
    proposal_id UUID PRIMARY KEY
);
INSERT INTO unrecorded_decisions (proposal_id) SELECT id FROM proposals
WHERE state IN ('rejected', 'withdrawn', 'completed', 'rolled_back', 'failed', 'kept');
