-- What a version did while it was ACTIVE and a governed change held its agent.
ALTER TABLE trials ADD COLUMN active_steps BIGINT NOT NULL DEFAULT 0;
ALTER TABLE trials ADD COLUMN active_blocked BIGINT NOT NULL DEFAULT 0;
-- Why the version fell by itself, from CANARY in its last trial or from ACTIVE.
ALTER TABLE trials ADD COLUMN fell TEXT;
