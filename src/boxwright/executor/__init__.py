"""Running a process of a build step in a sandbox."""
