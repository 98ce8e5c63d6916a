-- Secrets of Auth that every replica needs, encrypted with the key in credentials.seal_key_file.
CREATE TABLE sealed_secrets (
    name TEXT PRIMARY KEY,
    -- Incremented by every change, which is a compare-and-set.
    version BIGINT NOT NULL,
    sealed BYTEA NOT NULL
);

-- The number of the last signed revocation lists. Numbers were seconds since the Unix epoch before.
CREATE TABLE revocation_list_number (id BIGINT PRIMARY KEY, last BIGINT NOT NULL);
INSERT INTO revocation_list_number (id, last) VALUES (1, 0);

-- Another one with each report, by which a replica notices reports that were made to another.
ALTER TABLE trust_reports ADD COLUMN report UUID;

-- The replica whose own process holds the certificates of a lineage; empty for all other lineages.
ALTER TABLE certificate_lineages ADD COLUMN replica TEXT NOT NULL DEFAULT '';
