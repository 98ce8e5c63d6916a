-- What users have used, by month. The counter's row is locked from the change of totals to its commit: whoever
-- reads committed totals in the order of their versions never passes a gap. Months before `open_from` are closed.
CREATE TABLE usage_position (id BIGINT PRIMARY KEY, last BIGINT NOT NULL, open_from TEXT NOT NULL);
INSERT INTO usage_position (id, last, open_from) VALUES (1, 0, '');
CREATE TABLE usage_totals (
    month TEXT NOT NULL,
    user_id UUID NOT NULL,
    calls BIGINT NOT NULL,
    training_steps BIGINT NOT NULL,
    solver_us BIGINT NOT NULL,
    version BIGINT NOT NULL,
    PRIMARY KEY (month, user_id)
);
CREATE INDEX usage_totals_by_version ON usage_totals (month, version);
CREATE INDEX usage_totals_by_user ON usage_totals (user_id, month);
-- The last number of each source that is counted.
CREATE TABLE usage_sources (source TEXT PRIMARY KEY, last BIGINT NOT NULL, used_us BIGINT NOT NULL);
CREATE INDEX usage_sources_by_use ON usage_sources (used_us);
