-- What each agent learns by, and where. All agents so far were of one kind.
ALTER TABLE agents ADD COLUMN algorithm TEXT NOT NULL DEFAULT 'dqn';
ALTER TABLE agents ADD COLUMN environment TEXT NOT NULL DEFAULT 'cartpole';
