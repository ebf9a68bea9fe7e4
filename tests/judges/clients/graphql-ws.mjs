// npm graphql-ws: the protocol graphql-transport-ws.
import { createClient } from "graphql-ws";
import WebSocket from "ws";

export default function connect({ socket, authorization }) {
  const client = createClient({
    url: socket,
    webSocketImpl: WebSocket,
    connectionParams: { authorization },
    retryAttempts: 0,
  });
  return {
    subscribe: (operation, sink) => client.subscribe(operation, sink),
    close: () => client.dispose(),
  };
}
