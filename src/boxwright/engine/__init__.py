"""The composition root that every front runs."""
