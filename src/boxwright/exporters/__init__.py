"""Results out of the engine."""
