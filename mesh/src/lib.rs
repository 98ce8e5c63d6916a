//! Connections: the serve loop, client channels, health.
