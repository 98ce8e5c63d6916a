-- What is looked for or removed again and again is found without reading the table.
CREATE INDEX issued_certificates_serial ON issued_certificates (serial);
CREATE INDEX issued_certificates_spiffe_id ON issued_certificates (spiffe_id);
CREATE INDEX issued_certificates_by_end ON issued_certificates (not_after_us);
CREATE INDEX revocations_by_end ON revocations (expires_us);
CREATE INDEX trust_reports_by_end ON trust_reports (not_after_us);
CREATE INDEX used_join_tokens_by_end ON used_join_tokens (expires_us);
CREATE INDEX join_tokens_by_end ON join_tokens (expires_us);
CREATE INDEX api_keys_live ON api_keys (expires_us) WHERE revoked_us IS NULL;
CREATE INDEX sessions_revoked ON sessions (COALESCE(revoked_us, ends_us)) WHERE revoked;
