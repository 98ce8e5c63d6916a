//! SPIFFE identities, the certificate authority, and TLS configurations.
