-- Why a run ended, as programs read it; empty where it ended well, or before this was stored.
ALTER TABLE training_runs ADD COLUMN error_reason TEXT NOT NULL DEFAULT '';
