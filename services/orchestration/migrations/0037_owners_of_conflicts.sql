-- Whose steps met these conflicts: the newest are retained of each owner, so that nobody takes the places of others.
-- Whose the earlier ones are is not known.
ALTER TABLE conflicts ADD COLUMN owner TEXT NOT NULL DEFAULT '';
CREATE INDEX conflicts_of_owner ON conflicts (owner, number);
