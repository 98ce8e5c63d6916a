-- The last fall of a version, with when and from where it fell. Unlike the reason that stands against it, this stays when
-- the version climbs again. Of the falls until now the reason alone is known.
ALTER TABLE trials ADD COLUMN last_fall TEXT;
ALTER TABLE trials ADD COLUMN last_fall_us BIGINT;
ALTER TABLE trials ADD COLUMN last_fall_from TEXT;
UPDATE trials SET last_fall = fell WHERE fell IS NOT NULL;
