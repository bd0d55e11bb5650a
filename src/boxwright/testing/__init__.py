"""Shipped fakes and reusable suites."""
