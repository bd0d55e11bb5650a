"""Everything that one client offers to one build."""

from __future__ import annotations

import secrets

from boxwright.core.dataclass import dataclass, field
from boxwright.session.providers.auth import AuthProvider
from boxwright.session.providers.contents import OciLayouts
from boxwright.session.providers.localdirs import LocalDirs
from boxwright.session.providers.outputs import OutputChooser, OutputSinks
from boxwright.session.providers.secrets import SecretsProvider
from boxwright.session.providers.ssh import SshProvider
from boxwright.session.providers.uploads import UploadProvider


def new_id() -> str:
    """Return a random id (25 letters and digits, as BuildKit's clients make them)."""
    alphabet = "0123456789abcdefghijklmnopqrstuvwxyz"
    return "".join(secrets.choice(alphabet) for _ in range(25))


@dataclass(slots=True)
class SessionServices:
    """The offer of a client; what is None is not offered.

    Attributes:
        id: Random name under which the build finds this session.
        chooser: Asked for further outputs by builds with ``EnableSessionExporter``.
        shared_key: Tells a daemon which earlier context this one resembles.
    """

    dirs: LocalDirs | None = None
    auth: AuthProvider | None = None
    secrets: SecretsProvider | None = None
    ssh: SshProvider | None = None
    outputs: OutputSinks | None = None
    chooser: OutputChooser | None = None
    uploads: UploadProvider | None = None
    layouts: OciLayouts | None = None
    shared_key: str = ""
    name: str = ""
    id: str = field(default_factory=new_id)
