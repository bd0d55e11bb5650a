"""Run a process in a root file system."""
