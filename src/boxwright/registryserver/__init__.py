"""The OCI distribution API over the store."""
