-- The largest fencing token that was given for a piece of work of another service.
CREATE TABLE work_tokens (work TEXT PRIMARY KEY, token BIGINT NOT NULL);
