"""Layered file systems over overlayfs."""
