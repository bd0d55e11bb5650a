"""Inputs of a build: images, local folders, git, http."""
