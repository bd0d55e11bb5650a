"""LLB definitions: build, marshal, decode, verify."""
