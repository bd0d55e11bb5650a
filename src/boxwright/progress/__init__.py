"""Build progress as typed events."""
