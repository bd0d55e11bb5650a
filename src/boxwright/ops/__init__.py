"""LLB operations as the solver runs them."""
