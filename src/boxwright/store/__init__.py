"""The content-addressed store, leases, metadata and garbage collection."""
