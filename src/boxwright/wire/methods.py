"""Every method of the wire API that Boxwright serves or calls.

The request and response of a method are protobuf classes; where two protocols share a path
(``FileSend/DiffCopy`` carries raw bytes or fsutil packets), the bytes variants of send and
receive are used instead.
"""

from __future__ import annotations

from typing import Any, Final, Generic, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from boxwright.core.dataclass import dataclass
from boxwright.wire.pb import (
    auth_pb2,
    content_pb2,
    control_pb2,
    explain_pb2,
    filesync_pb2,
    fsutil_pb2,
    gateway_pb2,
    health_pb2,
    policysession_pb2,
    secrets_pb2,
    sessionexporter_pb2,
    ssh_pb2,
    upload_pb2,
)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    """One RPC: its path, message classes and which sides stream."""

    path: str
    request: type[Request]
    response: type[Response]
    client_streaming: bool = False
    server_streaming: bool = False

    @property
    def is_unary(self) -> bool:
        """Whether both sides send exactly one message."""
        return not self.client_streaming and not self.server_streaming


def _unary(
    path: str, request: type[Request], response: type[Response]
) -> Method[Request, Response]:
    return Method(path, request, response)


def _down(
    path: str, request: type[Request], response: type[Response]
) -> Method[Request, Response]:
    return Method(path, request, response, server_streaming=True)


def _both(
    path: str, request: type[Request], response: type[Response]
) -> Method[Request, Response]:
    return Method(path, request, response, client_streaming=True, server_streaming=True)


_C: Final = "/moby.buildkit.v1.Control/"
CONTROL_DISK_USAGE = _unary(
    _C + "DiskUsage", control_pb2.DiskUsageRequest, control_pb2.DiskUsageResponse
)
CONTROL_PRUNE = _down(_C + "Prune", control_pb2.PruneRequest, control_pb2.UsageRecord)
CONTROL_SOLVE = _unary(_C + "Solve", control_pb2.SolveRequest, control_pb2.SolveResponse)
CONTROL_STATUS = _down(_C + "Status", control_pb2.StatusRequest, control_pb2.StatusResponse)
CONTROL_SESSION = _both(_C + "Session", control_pb2.BytesMessage, control_pb2.BytesMessage)
CONTROL_LIST_WORKERS = _unary(
    _C + "ListWorkers", control_pb2.ListWorkersRequest, control_pb2.ListWorkersResponse
)
CONTROL_INFO = _unary(_C + "Info", control_pb2.InfoRequest, control_pb2.InfoResponse)
CONTROL_LISTEN_BUILD_HISTORY = _down(
    _C + "ListenBuildHistory", control_pb2.BuildHistoryRequest, control_pb2.BuildHistoryEvent
)
CONTROL_UPDATE_BUILD_HISTORY = _unary(
    _C + "UpdateBuildHistory",
    control_pb2.UpdateBuildHistoryRequest,
    control_pb2.UpdateBuildHistoryResponse,
)

_G: Final = "/moby.buildkit.v1.frontend.LLBBridge/"
BRIDGE_RESOLVE_IMAGE_CONFIG = _unary(
    _G + "ResolveImageConfig",
    gateway_pb2.ResolveImageConfigRequest,
    gateway_pb2.ResolveImageConfigResponse,
)
BRIDGE_RESOLVE_SOURCE_META = _unary(
    _G + "ResolveSourceMeta",
    gateway_pb2.ResolveSourceMetaRequest,
    gateway_pb2.ResolveSourceMetaResponse,
)
BRIDGE_SOLVE = _unary(_G + "Solve", gateway_pb2.SolveRequest, gateway_pb2.SolveResponse)
BRIDGE_READ_FILE = _unary(
    _G + "ReadFile", gateway_pb2.ReadFileRequest, gateway_pb2.ReadFileResponse
)
BRIDGE_READ_DIR = _unary(_G + "ReadDir", gateway_pb2.ReadDirRequest, gateway_pb2.ReadDirResponse)
BRIDGE_STAT_FILE = _unary(
    _G + "StatFile", gateway_pb2.StatFileRequest, gateway_pb2.StatFileResponse
)
BRIDGE_EVALUATE = _unary(
    _G + "Evaluate", gateway_pb2.EvaluateRequest, gateway_pb2.EvaluateResponse
)
BRIDGE_PING = _unary(_G + "Ping", gateway_pb2.PingRequest, gateway_pb2.PongResponse)
BRIDGE_RETURN = _unary(_G + "Return", gateway_pb2.ReturnRequest, gateway_pb2.ReturnResponse)
BRIDGE_INPUTS = _unary(_G + "Inputs", gateway_pb2.InputsRequest, gateway_pb2.InputsResponse)
BRIDGE_NEW_CONTAINER = _unary(
    _G + "NewContainer", gateway_pb2.NewContainerRequest, gateway_pb2.NewContainerResponse
)
BRIDGE_RELEASE_CONTAINER = _unary(
    _G + "ReleaseContainer",
    gateway_pb2.ReleaseContainerRequest,
    gateway_pb2.ReleaseContainerResponse,
)
BRIDGE_EXEC_PROCESS = _both(_G + "ExecProcess", gateway_pb2.ExecMessage, gateway_pb2.ExecMessage)
BRIDGE_READ_FILE_CONTAINER = _unary(
    _G + "ReadFileContainer", gateway_pb2.ReadFileRequest, gateway_pb2.ReadFileResponse
)
BRIDGE_READ_DIR_CONTAINER = _unary(
    _G + "ReadDirContainer", gateway_pb2.ReadDirRequest, gateway_pb2.ReadDirResponse
)
BRIDGE_STAT_FILE_CONTAINER = _unary(
    _G + "StatFileContainer", gateway_pb2.StatFileRequest, gateway_pb2.StatFileResponse
)
BRIDGE_WARN = _unary(_G + "Warn", gateway_pb2.WarnRequest, gateway_pb2.WarnResponse)

FILESYNC_DIFFCOPY = _both(
    "/moby.filesync.v1.FileSync/DiffCopy", fsutil_pb2.Packet, fsutil_pb2.Packet
)
FILESYNC_TARSTREAM = _both(
    "/moby.filesync.v1.FileSync/TarStream", fsutil_pb2.Packet, fsutil_pb2.Packet
)
FILESEND_DIFFCOPY = _both(
    "/moby.filesync.v1.FileSend/DiffCopy", filesync_pb2.BytesMessage, filesync_pb2.BytesMessage
)

_A: Final = "/moby.filesync.v1.Auth/"
AUTH_CREDENTIALS = _unary(
    _A + "Credentials", auth_pb2.CredentialsRequest, auth_pb2.CredentialsResponse
)
AUTH_FETCH_TOKEN = _unary(
    _A + "FetchToken", auth_pb2.FetchTokenRequest, auth_pb2.FetchTokenResponse
)
AUTH_GET_TOKEN_AUTHORITY = _unary(
    _A + "GetTokenAuthority",
    auth_pb2.GetTokenAuthorityRequest,
    auth_pb2.GetTokenAuthorityResponse,
)
AUTH_VERIFY_TOKEN_AUTHORITY = _unary(
    _A + "VerifyTokenAuthority",
    auth_pb2.VerifyTokenAuthorityRequest,
    auth_pb2.VerifyTokenAuthorityResponse,
)

SECRETS_GET = _unary(
    "/moby.buildkit.secrets.v1.Secrets/GetSecret",
    secrets_pb2.GetSecretRequest,
    secrets_pb2.GetSecretResponse,
)
SSH_CHECK_AGENT = _unary(
    "/moby.sshforward.v1.SSH/CheckAgent", ssh_pb2.CheckAgentRequest, ssh_pb2.CheckAgentResponse
)
SSH_FORWARD_AGENT = _both(
    "/moby.sshforward.v1.SSH/ForwardAgent", ssh_pb2.BytesMessage, ssh_pb2.BytesMessage
)
UPLOAD_PULL = _both(
    "/moby.upload.v1.Upload/Pull", upload_pb2.BytesMessage, upload_pb2.BytesMessage
)
EXPORTER_FIND = _unary(
    "/moby.exporter.v1.Exporter/FindExporters",
    sessionexporter_pb2.FindExportersRequest,
    sessionexporter_pb2.FindExportersResponse,
)
EXPORTER_FINALIZE = _unary(
    "/moby.exporter.v1.Exporter/FinalizeExport",
    sessionexporter_pb2.FinalizeExportRequest,
    sessionexporter_pb2.FinalizeExportResponse,
)
POLICY_CHECK = _unary(
    "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy",
    policysession_pb2.CheckPolicyRequest,
    policysession_pb2.CheckPolicyResponse,
)

HEALTH_CHECK = _unary(
    "/grpc.health.v1.Health/Check",
    health_pb2.HealthCheckRequest,
    health_pb2.HealthCheckResponse,
)
HEALTH_WATCH = _down(
    "/grpc.health.v1.Health/Watch",
    health_pb2.HealthCheckRequest,
    health_pb2.HealthCheckResponse,
)

_S: Final = "/containerd.services.content.v1.Content/"
CONTENT_INFO = _unary(_S + "Info", content_pb2.InfoRequest, content_pb2.InfoResponse)
CONTENT_UPDATE = _unary(_S + "Update", content_pb2.UpdateRequest, content_pb2.UpdateResponse)
CONTENT_LIST = _down(_S + "List", content_pb2.ListContentRequest, content_pb2.ListContentResponse)
CONTENT_DELETE = _unary(_S + "Delete", content_pb2.DeleteContentRequest, Empty)
CONTENT_READ = _down(_S + "Read", content_pb2.ReadContentRequest, content_pb2.ReadContentResponse)
CONTENT_STATUS = _unary(_S + "Status", content_pb2.StatusRequest, content_pb2.StatusResponse)
CONTENT_LIST_STATUSES = _unary(
    _S + "ListStatuses", content_pb2.ListStatusesRequest, content_pb2.ListStatusesResponse
)
CONTENT_WRITE = _both(
    _S + "Write", content_pb2.WriteContentRequest, content_pb2.WriteContentResponse
)
CONTENT_ABORT = _unary(_S + "Abort", content_pb2.AbortRequest, Empty)

EXPLAIN_WHY = _unary(
    "/boxwright.explain.v1.Explain/Why", explain_pb2.WhyRequest, explain_pb2.WhyResponse
)
EXPLAIN_SPACE = _unary(
    "/boxwright.explain.v1.Explain/Space", explain_pb2.SpaceRequest, explain_pb2.SpaceResponse
)

# Spans are swallowed: the messages are read as unknown fields of an empty message.
TRACE_EXPORT = _unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export", Empty, Empty)

BY_PATH: Final[dict[str, Method[Any, Any]]] = {
    value.path: value for value in list(globals().values()) if isinstance(value, Method)
}
