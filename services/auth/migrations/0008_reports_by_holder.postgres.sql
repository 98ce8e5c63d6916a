-- A report belongs to the certificate that it came with, or to the lineage of that: another certificate
-- of the same identity neither replaces it nor takes it back.
CREATE TABLE trust_reports_by_holder (
    spiffe_id TEXT NOT NULL,
    instance UUID NOT NULL,
    holder TEXT NOT NULL,
    roots TEXT NOT NULL,
    anchor TEXT NOT NULL,
    not_after_us BIGINT NOT NULL,
    names TEXT NOT NULL,
    not_before_us BIGINT NOT NULL,
    PRIMARY KEY (spiffe_id, instance, holder)
);

INSERT INTO trust_reports_by_holder
SELECT spiffe_id, instance, split_part(names, ',', 1), roots, anchor, not_after_us, names, not_before_us
FROM trust_reports;

DROP TABLE trust_reports;
ALTER TABLE trust_reports_by_holder RENAME TO trust_reports;
