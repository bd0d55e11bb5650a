"""``boxwright why``: what made the steps of a build run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli import units
from boxwright.cli.boxwright import GlobalOptions

if TYPE_CHECKING:
    from boxwright.client.client import Client
    from boxwright.wire.pb.explain_pb2 import Cause, ExplainedStep, ExportState, WhyResponse

_LATEST = "latest"
_SHOWN = 100
_DIGEST = len("sha256:") + 12

# What a kind of cause is called in a sentence; others are called by their own name.
_TITLES = {
    "env": "environment variable",
    "build-arg": "build argument",
    "image": "image",
    "workdir": "working directory",
    "secret-env": "secret variable",
    "dockerignore": ".dockerignore",
    "attribute": "attribute",
    "import": "cache import",
}
_SENTENCES = {
    "first": "nothing to compare with",
    "new": "new",
    "forced": "forced to run (no-cache)",
    "evicted": "evicted",
    "damaged": "its cached result can't be loaded",
    "input": "its input changed",
    "content": "the content that it reads changed",
    "path": "it reads another path",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--against", default="", metavar="BUILD", help="Compare with this build.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--builder", default="", metavar="NAME", help="Builder to ask.")
@click.argument("build", default=_LATEST)
@click.argument("step", default="")
@click.pass_obj
def why(
    options: GlobalOptions, /, *, build: str, step: str, against: str, as_json: bool, builder: str
) -> None:
    """Show which steps of BUILD ran, and what made each of them run.

    BUILD is a ref of `boxwright history ls`, or `latest`, which is the default. STEP is a part
    of a step's name. Builds are compared with the nearest earlier ones of the same project.

    \b
    Examples:
      boxwright why
      boxwright why latest "RUN make"
      boxwright why aeo5m0ng7dnr9gnjhqvohkgpz --json
    """  # noqa: D301 - click reads the backspaces
    from boxwright.cli.connect import run_chosen

    async def use(client: Client) -> WhyResponse:
        ref = "" if build == _LATEST else build
        return await client.why(ref, step=step, against=against)

    answer = run_chosen(options, builder, use)
    if as_json:
        from boxwright.cli import views

        sys.stdout.write(views.to_json(to_json(answer)) + "\n")
    else:
        sys.stdout.write(describe(answer))


def describe(answer: WhyResponse) -> str:
    """Return an answer as text."""
    lines = [f"build {answer.ref}" + (f", after {answer.against}" if answer.against else "")]
    counts = [
        f"{count} {what}"
        for count, what in (
            (answer.local, "cached"),
            (answer.imported, "imported"),
            (answer.skipped, "not needed"),
        )
        if count
    ]
    said = ", ".join([f"{answer.ran} of {answer.total} steps ran", *counts])
    lines.append(f"nothing changed: {said}" if not answer.ran else said)
    if answer.saved_ns:
        lines.append(f"the cache saved about {units.seconds(answer.saved_ns)}")
    lines += map(_export_line, answer.exports)
    for step in answer.steps:
        lines += ["", step.name, *(f"  {line}" for line in _step_lines(step))]
    return "\n".join(lines) + "\n"


def _export_line(export: ExportState) -> str:
    text = f"{export.name}: {units.seconds(export.took_ns)}"
    if export.error:
        return f"{text}, failed: {export.error}"
    new = f"{export.sent_layers} of {export.layers} layers were new"
    return f"{text}, {new}, {units.size(export.sent_bytes)} sent"


def _step_lines(step: ExplainedStep) -> list[str]:
    from boxwright.wire.pb import explain_pb2

    match step.outcome:
        case explain_pb2.LOCAL:
            return ["did not run: cached"]
        case explain_pb2.IMPORTED:
            return [f"did not run: imported from {step.origin.partition(':')[2]}"]
        case explain_pb2.SKIPPED:
            return ["did not run: what stands on it was cached"]
    return [describe_cause(cause) for cause in step.causes] or ["looked at in every build"]


def describe_cause(cause: Cause) -> str:
    """Return one line about a cause."""
    said = _SENTENCES.get(cause.kind, "")
    if not said:
        said = " ".join(
            each for each in (_TITLES.get(cause.kind, cause.kind), cause.subject) if each
        )
    change = _change(cause)
    if cause.kind == "file":
        text = f"{said}: {cause.detail}" if cause.subject else f"file: {cause.detail}"
        text += f" ({change})" if cause.old and cause.new else ""
    else:
        text = ": ".join(each for each in (said, change) if each)
        text += f" ({cause.detail})" if cause.detail else ""
    return f"{text}, in {cause.step}" if cause.step else text


def _change(cause: Cause) -> str:
    if not cause.old and not cause.new:
        return ""
    if cause.kind == "dockerignore":
        gone = [f"-{each}" for each in cause.old.split()]
        return " ".join([*gone, *(f"+{each}" for each in cause.new.split())])
    return f"{_short(cause.old)} -> {_short(cause.new)}"


def _short(value: str) -> str:
    if value.startswith("sha256:"):
        return value[:_DIGEST]
    value = value.replace("\n", "\\n")
    shown = value if len(value) <= _SHOWN else value[: _SHOWN - 1] + "…"
    return shown or "nothing"


def to_json(answer: WhyResponse) -> dict[str, Any]:
    """Return an answer as a JSON document; empty fields are left out."""
    from boxwright.wire.pb import explain_pb2

    return {
        "build": answer.ref,
        "against": answer.against,
        "counts": {
            "total": answer.total,
            "ran": answer.ran,
            "local": answer.local,
            "imported": answer.imported,
            "skipped": answer.skipped,
        },
        "savedNs": answer.saved_ns,
        "cacheExports": [
            {field.name: value for field, value in export.ListFields()}
            for export in answer.exports
        ],
        "steps": [
            {
                "name": step.name,
                "digest": step.digest,
                "outcome": explain_pb2.Outcome.Name(step.outcome).lower(),
                **({"origin": step.origin} if step.origin else {}),
                **({"against": step.against} if step.against else {}),
                "causes": [
                    {field.name: value for field, value in cause.ListFields()}
                    for cause in step.causes
                ],
            }
            for step in answer.steps
        ],
    }
