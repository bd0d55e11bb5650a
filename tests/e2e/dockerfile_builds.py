"""What a Dockerfile became: the image's config, its files and what the build said."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from programs import Buildx, Cli, Context, Layout, Run

_NUMBERS = itertools.count()


@dataclass
class Image:
    """The result of one build."""

    layout: Layout
    root: Path
    run: Run

    @property
    def settings(self) -> dict[str, Any]:
        """The part of the config that containers run with."""
        return self.layout.config["config"]

    @property
    def env(self) -> dict[str, str]:
        """The environment of containers."""
        return dict(entry.split("=", 1) for entry in self.settings.get("Env", []))

    @property
    def history(self) -> list[str]:
        """What each step of the image says it was created by."""
        return [entry.get("created_by", "") for entry in self.layout.config["history"]]

    def text(self, path: str) -> str:
        """Return the content of a file."""
        return (self.root / path).read_text()

    def lines(self, path: str) -> list[str]:
        """Return the lines of a file."""
        return self.text(path).splitlines()

    def names(self, path: str) -> list[str]:
        """Return the files below a folder, as paths from there."""
        top = self.root / path
        return sorted(str(p.relative_to(top)) for p in top.rglob("*") if not p.is_dir())

    def mode(self, path: str) -> str:
        """Return mode, owner and size of a file as the layers have it."""
        return self.layout.files()[path]


@dataclass
class Builder:
    """Builds a context with one client, into a layout and into a folder at once."""

    client: Cli | Buildx
    context: Context
    folder: Path

    def __call__(
        self, *argv: str | Path, where: str | Path | None = None, **options: Any
    ) -> Image:
        """Build; fail the test if the build fails."""
        number = next(_NUMBERS)
        archive, root = self.folder / f"{number}.tar", self.folder / f"{number}"
        outputs = ["-o", f"type=oci,dest={archive},compression=uncompressed"]
        outputs += ["-o", f"type=local,dest={root}"]
        place = self.context.path if where is None else where
        run = self.client.build(*argv, *outputs, place, **options).ok()
        return Image(Layout.unpack(archive), root, run)

    def fails(self, *argv: str | Path, **options: Any) -> Run:
        """Build what must fail."""
        run = self.client.build(*argv, self.context.path, **options)
        assert run.status != 0, run.text
        return run


@pytest.fixture
def build(cli: Cli, context: Context, tmp_path: Path) -> Builder:
    """Our command line with the embedded engine."""
    return Builder(cli, context, tmp_path)


@pytest.fixture
def stock_build(buildx: Buildx, context: Context, tmp_path: Path) -> Builder:
    """A stock docker-buildx with our daemon."""
    return Builder(buildx, context, tmp_path)
