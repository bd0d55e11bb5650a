"""The OCI image model, pure data."""
