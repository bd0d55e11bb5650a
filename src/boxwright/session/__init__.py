"""BuildKit sessions, seen from both ends."""
