from google.api import annotations_pb2 as _annotations_pb2
from llmg.gatewayapi.v1 import chat_pb2 as _chat_pb2
from llmg.gatewayapi.v1 import embeddings_pb2 as _embeddings_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExplainRouteRequest(_message.Message):
    __slots__ = ("chat", "embeddings", "level")
    CHAT_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    chat: _chat_pb2.Chat
    embeddings: _embeddings_pb2.CreateEmbeddingsRequest
    level: str
    def __init__(self, chat: _Optional[_Union[_chat_pb2.Chat, _Mapping]] = ..., embeddings: _Optional[_Union[_embeddings_pb2.CreateEmbeddingsRequest, _Mapping]] = ..., level: _Optional[str] = ...) -> None: ...

class ExplainRouteResponse(_message.Message):
    __slots__ = ("model", "stages")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    model: str
    stages: _containers.RepeatedCompositeFieldContainer[RouteStage]
    def __init__(self, model: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[RouteStage, _Mapping]]] = ...) -> None: ...

class RouteStage(_message.Message):
    __slots__ = ("model", "policy", "targets")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    model: str
    policy: str
    targets: _containers.RepeatedCompositeFieldContainer[RouteTarget]
    def __init__(self, model: _Optional[str] = ..., policy: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[RouteTarget, _Mapping]]] = ...) -> None: ...

class RouteTarget(_message.Message):
    __slots__ = ("provider", "model", "verdict", "place", "score", "reason", "weight", "tier", "price", "context_window", "capabilities", "region", "labels")
    class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        VERDICT_UNSPECIFIED: _ClassVar[RouteTarget.Verdict]
        VERDICT_CANDIDATE: _ClassVar[RouteTarget.Verdict]
        VERDICT_REJECTED: _ClassVar[RouteTarget.Verdict]
    VERDICT_UNSPECIFIED: RouteTarget.Verdict
    VERDICT_CANDIDATE: RouteTarget.Verdict
    VERDICT_REJECTED: RouteTarget.Verdict
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_WINDOW_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    provider: str
    model: str
    verdict: RouteTarget.Verdict
    place: int
    score: float
    reason: str
    weight: float
    tier: int
    price: TokenPrice
    context_window: int
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    region: str
    labels: _containers.ScalarMap[str, str]
    def __init__(self, provider: _Optional[str] = ..., model: _Optional[str] = ..., verdict: _Optional[_Union[RouteTarget.Verdict, str]] = ..., place: _Optional[int] = ..., score: _Optional[float] = ..., reason: _Optional[str] = ..., weight: _Optional[float] = ..., tier: _Optional[int] = ..., price: _Optional[_Union[TokenPrice, _Mapping]] = ..., context_window: _Optional[int] = ..., capabilities: _Optional[_Iterable[str]] = ..., region: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class TokenPrice(_message.Message):
    __slots__ = ("input", "output")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    input: float
    output: float
    def __init__(self, input: _Optional[float] = ..., output: _Optional[float] = ...) -> None: ...
