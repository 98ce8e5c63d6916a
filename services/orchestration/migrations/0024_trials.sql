-- Which of a version's trials its counts in CANARY belong to. Each time that it enters CANARY is a new one.
ALTER TABLE trials ADD COLUMN trial BIGINT NOT NULL DEFAULT 0;
