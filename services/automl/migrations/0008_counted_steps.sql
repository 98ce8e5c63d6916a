-- The steps of a trial that are counted as used, and what is found again and again for each user.
ALTER TABLE trials ADD COLUMN counted BIGINT NOT NULL DEFAULT 0;
CREATE INDEX studies_by_owner ON studies (owner_id, state);
