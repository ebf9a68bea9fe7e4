"""The doors, a row each: for chats, for vectors, and for those who look around."""

from scenarios.asking import Door, Look
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
EMBEDDERS: dict[str, Door] = {
    **rest.EMBEDDERS,
    **grpc.EMBEDDERS,
    **gateway.EMBEDDERS,
    **graphql.EMBEDDERS,
    **sockets.EMBEDDERS,
    **python.EMBEDDERS,
}
READERS: dict[str, Look] = {
    **rest.READERS,
    **grpc.READERS,
    **gateway.READERS,
    **graphql.READERS,
    **python.READERS,
}
ADMINISTRATORS: dict[str, Look] = {name: look for name, look in READERS.items() if look.administers}
