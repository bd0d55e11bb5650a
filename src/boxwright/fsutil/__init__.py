"""Tar, whiteouts, confined paths and atomic files."""
