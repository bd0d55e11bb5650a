"""The versions, in one place: our own, and those of what we speak.

Servers and clients decide by the latter what they may ask for: BuildKit's wire API, and the
Dockerfile language of the frontend that belongs to it.
"""

__version__ = "0.1.0"

BUILDKIT_VERSION = "v0.32.2"
DOCKERFILE_VERSION = "1.26.0"

USER_AGENT = f"buildkit/{BUILDKIT_VERSION.rpartition('.')[0]} boxwright/{__version__}"
"""What HTTP servers are told; BuildKit's name first, as rules of registries and proxies have it."""
