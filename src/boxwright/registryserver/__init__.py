"""The OCI distribution API over the store: no copy between builder and registry."""
