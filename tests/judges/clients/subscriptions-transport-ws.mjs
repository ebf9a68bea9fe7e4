// npm subscriptions-transport-ws: the older protocol, graphql-ws.
import transport from "subscriptions-transport-ws";
import WebSocket from "ws";

export default function connect({ socket, authorization }) {
  const open = new Set(); // sinks: that a connection is refused it tells to one callback, and to no operation
  const client = new transport.SubscriptionClient(
    socket,
    {
      connectionParams: { authorization },
      connectionCallback: (error) => error && open.forEach((sink) => sink.error(error)),
    },
    WebSocket,
  );
  return {
    subscribe(operation, sink) {
      open.add(sink);
      const subscription = client.request(operation).subscribe(sink);
      return () => subscription.unsubscribe();
    },
    close: () => client.close(),
  };
}
