"""Failures that the engine itself detects."""

from __future__ import annotations

from boxwright.errors import BoxwrightError, Code, NotFoundError, PermissionDeniedError


class UnknownBuildError(NotFoundError):
    """No build of this ref runs or is remembered (BuildKit: "no such job")."""

    def __init__(self, ref: str) -> None:
        super().__init__(f"no such job {ref}")
        self.ref = ref


class DuplicateBuildError(BoxwrightError):
    """A build of this ref is already running."""

    code = Code.INVALID

    def __init__(self, ref: str) -> None:
        super().__init__(f"job ID {ref} exists", hint="every Solve needs a ref of its own")


class EntitlementError(PermissionDeniedError):
    """The build asks for a privilege that the daemon or the client has not allowed."""

    def __init__(self, entitlement: str, *, by_daemon: bool) -> None:
        brief, detail = f"{entitlement} is not allowed", ""
        if by_daemon:
            # Clients look for upstream's words.
            brief = f"granting entitlement {brief} by build daemon configuration"
            hint = f'add insecure-entitlements = ["{entitlement}"] to buildkitd.toml'
        else:
            detail = "the client did not allow it"
            hint = f"build with --allow {entitlement}"
        super().__init__(brief, detail=detail, hint=hint)
        self.entitlement = entitlement


class DeviceNotAllowedError(PermissionDeniedError):
    """A step asks for a device that the client of the build has not allowed."""

    def __init__(self, device: str) -> None:
        super().__init__(
            f"device {device} is requested by the build but not allowed",
            hint=f"build with --allow device={device}",
        )
        self.device = device


class EngineClosingError(BoxwrightError):
    """The engine is being shut down and takes no new builds."""

    code = Code.UNAVAILABLE
    retryable = True

    def __init__(self) -> None:
        super().__init__("the builder is shutting down", hint="try again, or use another builder")
