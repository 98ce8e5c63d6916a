-- What came of proposals, by which the approvals of the mesh's model are calibrated. Only the newest are retained.
CREATE TABLE decisions (
    proposal_id UUID PRIMARY KEY,
    ended_us BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX decisions_by_end ON decisions (ended_us);
