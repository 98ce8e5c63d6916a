-- Nobody has more than so many join tokens out.
CREATE INDEX join_tokens_maker ON join_tokens (maker, expires_us);
