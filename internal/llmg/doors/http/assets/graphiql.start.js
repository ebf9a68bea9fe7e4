const asked = new URLSearchParams(location.search);
const endpoint = location.origin + location.pathname;

ReactDOM.createRoot(document.getElementById("graphiql")).render(
  React.createElement(GraphiQL, {
    // Subscriptions go over graphql-transport-ws, with the headers as the payload of connection_init.
    fetcher: GraphiQL.createFetcher({ url: endpoint, subscriptionUrl: endpoint.replace(/^http/, "ws") }),
    query: asked.get("query") ?? undefined,
    variables: asked.get("variables") ?? undefined,
    operationName: asked.get("operationName") ?? undefined,
    defaultQuery: `# An API key, where one is needed, goes under Headers:
# {"Authorization": "Bearer KEY"}
{
  models {
    id
    operations
  }
}
`,
    shouldPersistHeaders: false,
  }),
);
