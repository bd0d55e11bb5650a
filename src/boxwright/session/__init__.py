"""Build sessions: what a client offers to a build while it runs.

Files, credentials, secrets, an ssh agent and output sinks stay on the client; the engine asks
for them through a :class:`~boxwright.session.base.Session`, wherever the client is.
"""
