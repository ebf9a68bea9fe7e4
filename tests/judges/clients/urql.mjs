// npm @urql/core: its fetch exchange, which takes subscriptions as server-sent events (or multipart/mixed).
import { Client, fetchExchange } from "@urql/core";

export default function connect({ http, authorization }) {
  const client = new Client({
    url: http,
    exchanges: [fetchExchange],
    fetchOptions: { headers: { authorization } },
    fetchSubscriptions: true,
    preferGetMethod: false,
  });

  const plain = ({ data, error }) => {
    if (error?.networkError) throw error.networkError;
    return { data, errors: error?.graphQLErrors };
  };

  return {
    async ask({ kind, query, variables }) {
      return plain(await client[kind](query, variables).toPromise());
    },
    subscribe({ query, variables }, sink) {
      // Each result holds what those before it brought, too: the latest data, and all errors.
      let latest = {};
      const { unsubscribe } = client.subscription(query, variables).subscribe((result) => {
        try {
          const { data, errors = [] } = plain(result);
          const more = { data: data === latest.data ? undefined : data, errors: errors.slice(latest.errors?.length) };
          latest = { data, errors };
          if (more.data || more.errors.length) sink.next(more);
          if (!result.hasNext || !data) sink.complete(); // of a refused request it doesn't tell the end
        } catch (error) {
          sink.error(error);
        }
      });
      return unsubscribe;
    },
    close() {},
  };
}
