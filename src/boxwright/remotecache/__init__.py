"""Build caches outside of this machine: in registries, in folders of clients, inside images.

The format is BuildKit's, so caches cross between its daemons and ours. ``format`` is the
document, ``chains`` the graph behind it, ``keys`` and ``results`` show an imported graph to the
solver, ``reader`` and ``writer`` move it, ``places`` says where from and where to.
"""
