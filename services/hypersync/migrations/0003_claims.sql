ALTER TABLE proposals ADD COLUMN open_trial TEXT;
ALTER TABLE proposals ADD COLUMN changing_agent TEXT;
CREATE UNIQUE INDEX proposals_by_open_trial ON proposals (open_trial);
CREATE UNIQUE INDEX proposals_by_changing_agent ON proposals (changing_agent);
