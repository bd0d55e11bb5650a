"""The graph solver: cache keys, scheduling, sharing."""
