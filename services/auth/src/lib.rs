//! Users, sessions, API keys, signing keys, the audit list, the credential watch.
