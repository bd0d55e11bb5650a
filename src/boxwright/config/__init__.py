"""TOML into frozen dataclasses."""
