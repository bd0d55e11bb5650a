"""LLB operations as solver ops."""
