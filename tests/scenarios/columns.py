"""The doors, a row each."""

from scenarios.asking import Door
from scenarios.clients import gateway, graphql, grpc, python, rest, sockets

DOORS: dict[str, Door] = {
    **rest.DOORS,
    **grpc.DOORS,
    **gateway.DOORS,
    **graphql.DOORS,
    **sockets.DOORS,
    **python.DOORS,
}
STREAMS: dict[str, Door] = {name: door for name, door in DOORS.items() if door.streams}
