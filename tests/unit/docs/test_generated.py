"""What the documentation says is what the code says."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import boxwright.client
from boxwright.cli import boxwright as cli
from boxwright.config import load, schema

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md") for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("tool", ["configdoc", "errordoc", "commanddoc"])
def test_generated_parts_are_up_to_date(tool: str) -> None:
    done = subprocess.run(
        [sys.executable, f"tools/{tool}.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_generator_notices_a_change(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        generated = importlib.import_module("generated")
    finally:
        sys.path.pop(0)
    page = generated.fill("# Page\n\nBy hand.\n", "one", "tools/x")
    assert generated.fill(page, "one", "tools/x") == page
    changed = generated.fill(page + "\nMore.\n", "two", "tools/x")
    assert "one" not in changed
    assert changed.startswith("# Page\n\nBy hand.\n")
    assert changed.endswith("\nMore.\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    broken = [
        link
        for link in LINK.findall(text)
        if "://" not in link
        and not link.startswith(("#", "mailto:"))
        and not (page.parent / link.partition("#")[0]).exists()
    ]
    assert broken == []


def test_examples_of_the_configuration_are_read_without_a_complaint(tmp_path: Path) -> None:
    text = (ROOT / "docs/configuration/README.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    # Top-level keys stand before the first table, so the blocks are one file in their order.
    file = tmp_path / "buildkitd.toml"
    file.write_text("\n".join(blocks))
    loaded = load.load(file)
    assert loaded.warnings == ()
    assert loaded.config.grpc.address
    assert loaded.config.registry["registry.example.com"].mirrors
    assert isinstance(loaded.config, schema.Config)


def test_every_name_of_the_client_can_be_imported() -> None:
    for name in boxwright.client.__all__:
        assert getattr(boxwright.client, name) is not None


def leaves(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command that does something, with its name."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    ctx = click.Context(command, info_name=path)
    for name in command.list_commands(ctx):
        inner = command.get_command(ctx, name)
        assert inner is not None
        yield from leaves(inner, f"{path} {name}")


def test_help_of_every_command_has_an_example() -> None:
    found = dict(leaves(cli.command, "boxwright"))
    assert len(found) > 10
    without = [
        path
        for path, command in found.items()
        if path not in (command.help or "").partition("Example")[2]
    ]
    assert without == []
