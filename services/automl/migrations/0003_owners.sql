ALTER TABLE studies ADD COLUMN owner_id TEXT NOT NULL DEFAULT '';
UPDATE studies SET owner_id = owner;
