# mypy: ignore-errors
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNKNOWN: _ClassVar[Outcome]
    RAN: _ClassVar[Outcome]
    LOCAL: _ClassVar[Outcome]
    IMPORTED: _ClassVar[Outcome]
    SKIPPED: _ClassVar[Outcome]
    FAILED: _ClassVar[Outcome]
UNKNOWN: Outcome
RAN: Outcome
LOCAL: Outcome
IMPORTED: Outcome
SKIPPED: Outcome
FAILED: Outcome

class WhyRequest(_message.Message):
    __slots__ = ("ref", "step", "against")
    REF_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    ref: str
    step: str
    against: str
    def __init__(self, ref: _Optional[str] = ..., step: _Optional[str] = ..., against: _Optional[str] = ...) -> None: ...

class SpaceRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SpaceResponse(_message.Message):
    __slots__ = ("free", "blobs")
    FREE_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    free: int
    blobs: int
    def __init__(self, free: _Optional[int] = ..., blobs: _Optional[int] = ...) -> None: ...

class WhyResponse(_message.Message):
    __slots__ = ("ref", "steps", "against", "total", "ran", "local", "imported", "skipped", "saved_ns", "exports")
    REF_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    RAN_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    IMPORTED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    SAVED_NS_FIELD_NUMBER: _ClassVar[int]
    EXPORTS_FIELD_NUMBER: _ClassVar[int]
    ref: str
    steps: _containers.RepeatedCompositeFieldContainer[ExplainedStep]
    against: str
    total: int
    ran: int
    local: int
    imported: int
    skipped: int
    saved_ns: int
    exports: _containers.RepeatedCompositeFieldContainer[ExportState]
    def __init__(self, ref: _Optional[str] = ..., steps: _Optional[_Iterable[_Union[ExplainedStep, _Mapping]]] = ..., against: _Optional[str] = ..., total: _Optional[int] = ..., ran: _Optional[int] = ..., local: _Optional[int] = ..., imported: _Optional[int] = ..., skipped: _Optional[int] = ..., saved_ns: _Optional[int] = ..., exports: _Optional[_Iterable[_Union[ExportState, _Mapping]]] = ...) -> None: ...

class ExplainedStep(_message.Message):
    __slots__ = ("digest", "name", "outcome", "origin", "against", "causes")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    CAUSES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    name: str
    outcome: Outcome
    origin: str
    against: str
    causes: _containers.RepeatedCompositeFieldContainer[Cause]
    def __init__(self, digest: _Optional[str] = ..., name: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., origin: _Optional[str] = ..., against: _Optional[str] = ..., causes: _Optional[_Iterable[_Union[Cause, _Mapping]]] = ...) -> None: ...

class Cause(_message.Message):
    __slots__ = ("kind", "subject", "old", "new", "detail", "step")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    OLD_FIELD_NUMBER: _ClassVar[int]
    NEW_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    kind: str
    subject: str
    old: str
    new: str
    detail: str
    step: str
    def __init__(self, kind: _Optional[str] = ..., subject: _Optional[str] = ..., old: _Optional[str] = ..., new: _Optional[str] = ..., detail: _Optional[str] = ..., step: _Optional[str] = ...) -> None: ...

class BuildKeys(_message.Message):
    __slots__ = ("steps", "frontend", "options", "imports", "exports")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STEPS_FIELD_NUMBER: _ClassVar[int]
    FRONTEND_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    IMPORTS_FIELD_NUMBER: _ClassVar[int]
    EXPORTS_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedCompositeFieldContainer[StepKeys]
    frontend: str
    options: _containers.ScalarMap[str, str]
    imports: _containers.RepeatedCompositeFieldContainer[ImportState]
    exports: _containers.RepeatedCompositeFieldContainer[ExportState]
    def __init__(self, steps: _Optional[_Iterable[_Union[StepKeys, _Mapping]]] = ..., frontend: _Optional[str] = ..., options: _Optional[_Mapping[str, str]] = ..., imports: _Optional[_Iterable[_Union[ImportState, _Mapping]]] = ..., exports: _Optional[_Iterable[_Union[ExportState, _Mapping]]] = ...) -> None: ...

class StepKeys(_message.Message):
    __slots__ = ("digest", "name", "op", "cache_maps", "inputs", "outcome", "origin", "ignore_cache", "pin", "load_failures", "took_ns")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OP_FIELD_NUMBER: _ClassVar[int]
    CACHE_MAPS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    IGNORE_CACHE_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    LOAD_FAILURES_FIELD_NUMBER: _ClassVar[int]
    TOOK_NS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    name: str
    op: bytes
    cache_maps: _containers.RepeatedScalarFieldContainer[str]
    inputs: _containers.RepeatedCompositeFieldContainer[InputKeys]
    outcome: Outcome
    origin: str
    ignore_cache: bool
    pin: str
    load_failures: _containers.RepeatedScalarFieldContainer[str]
    took_ns: int
    def __init__(self, digest: _Optional[str] = ..., name: _Optional[str] = ..., op: _Optional[bytes] = ..., cache_maps: _Optional[_Iterable[str]] = ..., inputs: _Optional[_Iterable[_Union[InputKeys, _Mapping]]] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., origin: _Optional[str] = ..., ignore_cache: _Optional[bool] = ..., pin: _Optional[str] = ..., load_failures: _Optional[_Iterable[str]] = ..., took_ns: _Optional[int] = ...) -> None: ...

class InputKeys(_message.Message):
    __slots__ = ("step", "output", "selector", "content", "table")
    STEP_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    step: int
    output: int
    selector: str
    content: str
    table: bytes
    def __init__(self, step: _Optional[int] = ..., output: _Optional[int] = ..., selector: _Optional[str] = ..., content: _Optional[str] = ..., table: _Optional[bytes] = ...) -> None: ...

class ImportState(_message.Message):
    __slots__ = ("name", "error")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    error: str
    def __init__(self, name: _Optional[str] = ..., error: _Optional[str] = ...) -> None: ...

class ExportState(_message.Message):
    __slots__ = ("name", "took_ns", "layers", "sent_layers", "sent_bytes", "error")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOOK_NS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    SENT_LAYERS_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    took_ns: int
    layers: int
    sent_layers: int
    sent_bytes: int
    error: str
    def __init__(self, name: _Optional[str] = ..., took_ns: _Optional[int] = ..., layers: _Optional[int] = ..., sent_layers: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...
