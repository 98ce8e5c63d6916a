//! What a credential is: tokens, API keys, roles, and the pushed snapshot.
