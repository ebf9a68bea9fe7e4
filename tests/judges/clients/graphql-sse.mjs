// npm graphql-sse, in its distinct connections mode: a request for each operation.
import { createClient } from "graphql-sse";

export default function connect({ http, authorization }) {
  const client = createClient({ url: http, headers: { authorization }, retryAttempts: 0 });
  return {
    subscribe: (operation, sink) => client.subscribe(operation, sink),
    close: () => client.dispose(),
  };
}
