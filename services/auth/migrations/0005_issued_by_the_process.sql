-- How a certificate came to be: a join token, an administrator, a renewal, the authority's own
-- process, or files; empty when it was issued before this was written down.
ALTER TABLE issued_certificates ADD COLUMN source TEXT NOT NULL DEFAULT '';

-- With which certificate a process was last heard: each link as issuer:serial, leaf first.
ALTER TABLE trust_reports ADD COLUMN names TEXT NOT NULL DEFAULT '';
ALTER TABLE trust_reports ADD COLUMN not_before_us BIGINT NOT NULL DEFAULT 0;
