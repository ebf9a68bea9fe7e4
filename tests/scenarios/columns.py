"""The doors, a row each."""

from scenarios.asking import Door
from scenarios.clients import graphql, grpc, rest

DOORS: dict[str, Door] = {**rest.DOORS, **grpc.DOORS, **graphql.DOORS}
STREAMS: dict[str, Door] = {name: door for name, door in DOORS.items() if door.streams}
