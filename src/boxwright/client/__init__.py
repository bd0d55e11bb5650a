"""The client of any BuildKit-compatible daemon and of the embedded engine."""
