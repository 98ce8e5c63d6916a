-- Contents by their SHA-256, each a list of chunks that other contents may share.
CREATE TABLE blob_chunks (
    name TEXT PRIMARY KEY,
    content BYTEA NOT NULL
);

CREATE TABLE blobs (
    name TEXT PRIMARY KEY,
    length BIGINT NOT NULL
);

CREATE TABLE blob_parts (
    blob TEXT NOT NULL REFERENCES blobs (name),
    position BIGINT NOT NULL,
    chunk TEXT NOT NULL REFERENCES blob_chunks (name),
    PRIMARY KEY (blob, position)
);

CREATE INDEX blob_parts_by_chunk ON blob_parts (chunk);
