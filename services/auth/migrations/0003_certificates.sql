-- Every certificate that was issued over the service.
CREATE TABLE issued_certificates (
    issuer TEXT NOT NULL,
    serial TEXT NOT NULL,
    spiffe_id TEXT NOT NULL,
    lineage UUID NOT NULL,
    issued_us BIGINT NOT NULL,
    not_after_us BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    PRIMARY KEY (issuer, serial)
);
CREATE INDEX issued_certificates_newest ON issued_certificates (issued_us, serial);
CREATE INDEX issued_certificates_lineage ON issued_certificates (lineage);

-- The renewals of one first certificate: a stolen one ends with them.
CREATE TABLE certificate_lineages (
    id UUID PRIMARY KEY,
    spiffe_id TEXT NOT NULL,
    started_us BIGINT NOT NULL,
    ends_us BIGINT NOT NULL,
    revoked BOOLEAN NOT NULL,
    latest_serial TEXT NOT NULL,
    rejoin TEXT NOT NULL,
    rejoin_before TEXT NOT NULL
);
CREATE INDEX certificate_lineages_id ON certificate_lineages (spiffe_id);

CREATE TABLE used_join_tokens (
    id TEXT PRIMARY KEY,
    expires_us BIGINT NOT NULL
);

-- An entry with an empty serial is about an identity, and has a not_before.
CREATE TABLE revocations (
    position BIGINT PRIMARY KEY,
    issuer TEXT NOT NULL,
    serial TEXT NOT NULL,
    spiffe_id TEXT NOT NULL,
    not_before_s BIGINT NOT NULL,
    expires_us BIGINT NOT NULL,
    reason TEXT NOT NULL,
    revoked_us BIGINT NOT NULL,
    revoked_by TEXT NOT NULL
);
CREATE UNIQUE INDEX revocations_certificate ON revocations (issuer, serial, spiffe_id);

-- What each process trusts and stands under, as last heard.
CREATE TABLE trust_reports (
    spiffe_id TEXT NOT NULL,
    instance UUID NOT NULL,
    roots TEXT NOT NULL,
    anchor TEXT NOT NULL,
    not_after_us BIGINT NOT NULL,
    PRIMARY KEY (spiffe_id, instance)
);

-- Steps of the roots whose audit records are written.
CREATE TABLE recorded_steps (
    id BIGINT PRIMARY KEY,
    version BIGINT NOT NULL
);
INSERT INTO recorded_steps (id, version) VALUES (1, 0);
