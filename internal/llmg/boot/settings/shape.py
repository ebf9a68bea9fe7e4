"""The shape of the configuration. Each field says what it means: the JSON schema is made from these files."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from llmg.boot.settings.catalog import Admin, Source, Tenant
from llmg.boot.settings.groups import FlatModels
from llmg.boot.settings.limits import RateLimits, Redis
from llmg.boot.settings.problems import Expected
from llmg.boot.settings.providers import Provider
from llmg.boot.settings.servers import Gateway, GraphQL, Grpc, Http, Log, Rest, Server, WebSocket
from llmg.boot.settings.types import ApiKey, ProviderName, Text


class Settings(BaseSettings):
    """The configuration of llmg."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, env_prefix="LLMG_", env_nested_delimiter="__"
    )

    http: Http = Field(default=Http(), description="The HTTP server.")
    grpc: Grpc = Field(default=Grpc(), description="The gRPC server.")
    rest: Rest = Field(default=Rest(), description="REST in OpenAI's shape, at /v1.")
    websocket: WebSocket = Field(default=WebSocket(), description="Token streams over WebSocket, at /v1/ws.")
    gateway: Gateway = Field(default=Gateway(), description="The gRPC services as REST in JSON, at /api/v1.")
    graphql: GraphQL = Field(default=GraphQL(), description="GraphQL, at /graphql.")
    keys: dict[ProviderName, ApiKey] = Field(
        default={},
        description="The API keys that clients must show, by a name of your choice. Write ${VARIABLE}, not the key "
        "itself. They belong to no tenant. Without any, nor tenants, nor administrators, everybody may ask.",
    )
    limits: RateLimits = Field(default=RateLimits(), description="What all requests may take together.")
    redis: Redis | None = Field(default=None, description="A Redis that several gateways share, if there is one.")
    labels: dict[ProviderName, Text] = Field(default={}, description="Labels of all requests.")
    tenants: dict[ProviderName, Tenant] = Field(
        default={}, description="Who may ask, and for what: tenants, their teams, groups and endpoints."
    )
    admin: Admin = Field(default=Admin(), description="Who may change the catalog of tenants.")
    catalog: Source | None = Field(
        default=None, description="Where tenants are kept that may change while the gateway runs; not with `tenants`."
    )
    log: Log = Field(default=Log(), description="What is logged, and how.")
    server: Server = Field(default=Server(), description="The gateway's processes.")
    providers: dict[ProviderName, Provider] = Field(
        default={}, description="Who can answer, by a name of your choice. Clients reach them as PROVIDER/MODEL, too."
    )
    models: FlatModels = Field(default={}, description="The models that clients ask for by name.")
    models_dir: Annotated[Path, AfterValidator(Path.expanduser)] = Field(
        default=Path("models"), description="Where model files named without a path are looked for."
    )

    @model_validator(mode="after")
    def _addresses_of_their_own(self) -> "Settings":
        bound = {"http": self.http.bind, "grpc": self.grpc.bind if self.grpc.enabled else None}
        bound["graphql"] = self.graphql.bind if self.graphql.enabled else None
        known: dict[tuple[str, int], str] = {}
        for name, bind in bound.items():
            if bind is not None and bind[1] != 0 and (other := known.setdefault(bind, name)) != name:
                raise Expected(f"addresses that differ, but {other}.server_addr and {name}.server_addr are the same")
        return self

    @field_validator("keys")
    @classmethod
    def _each_its_own(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        names: dict[str, str] = {}
        for name, key in value.items():
            if (other := names.setdefault(key.get_secret_value(), name)) != name:
                raise Expected(f"keys that differ, but '{other}' and '{name}' are the same")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what was passed. Files and environment are `load`'s work, which keeps each value's origin."""
        return (init_settings,)
