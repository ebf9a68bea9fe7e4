// npm @apollo/client: its own HTTP link, which takes subscriptions as multipart/mixed.
import { ApolloClient, HttpLink, InMemoryCache, gql } from "@apollo/client";
import { CombinedGraphQLErrors } from "@apollo/client/errors";

const ASK = { query: "query", mutation: "mutate" };

export default function connect({ http, authorization }) {
  const client = new ApolloClient({
    link: new HttpLink({ uri: http, headers: { authorization } }),
    cache: new InMemoryCache(),
    defaultOptions: { query: { errorPolicy: "all" }, mutate: { errorPolicy: "all" } },
  });

  const plain = ({ data, error }) => {
    if (error && !CombinedGraphQLErrors.is(error)) throw error;
    return { data, errors: error?.errors };
  };

  return {
    async ask({ kind, query, variables }) {
      return plain(await client[ASK[kind]]({ [kind]: gql(query), variables }));
    },
    subscribe({ query, variables }, sink) {
      const subscription = client
        .subscribe({ query: gql(query), variables, errorPolicy: "all" })
        .subscribe({
          ...sink,
          next(result) {
            try {
              sink.next(plain(result));
            } catch (error) {
              sink.error(error);
            }
          },
        });
      return () => subscription.unsubscribe();
    },
    close: () => client.stop(),
  };
}
