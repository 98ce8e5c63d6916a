//! What a process needs: configuration, clock, telemetry, storage, blobs.
