// One scenario with one client: node run.mjs CLIENT SCENARIO '{"http": ..., "socket": ..., "authorization": ...}'
//
// Prints what came of it as a line of JSON, then keeps its connections until its stdin is closed: so whoever asks can
// tell apart what leaving an operation did from what the end of the process did.
//
// A client is {subscribe(operation, sink) -> leave(), close()}, as graphql-ws has it, and may have
// ask(operation) -> {data, errors} for operations of one answer. An operation is {kind, query, variables}.

const MODELS = { kind: "query", query: "query Models { models { id } }" };
const CHAT = "mutation Chat($input: ChatInput!) { createChatCompletion(input: $input) { choices { text } } }";
const STREAM = "subscription Stream($input: ChatInput!) { chatCompletion(input: $input) { text } }";

const asking = (kind, query, model) => ({
  kind,
  query,
  variables: { input: { model, messages: [{ role: "USER", parts: [{ text: { text: "Hello" } }] }] } },
});
const chat = (model = "m") => asking("mutation", CHAT, model);
const stream = (model = "m") => asking("subscription", STREAM, model);

// What a sink's `error` got: GraphQL's errors (a list, or an object that holds one). Something else is thrown.
const errorsOf = (error) => {
  const found = Array.isArray(error) ? error : (error.errors ?? error.graphQLErrors ?? (error.extensions && [error]));
  if (!found?.length) throw error;
  return found;
};
const codes = (errors) => (errors ?? []).map((error) => error.extensions?.code);

/** An operation to its end: {results: [data], codes: [extensions.code]}. */
function read(client, operation) {
  const results = [];
  const errors = [];
  return new Promise((resolve, reject) => {
    const end = () => resolve({ results, codes: codes(errors) });
    client.subscribe(operation, {
      next({ data, errors: more }) {
        if (data) results.push(data);
        errors.push(...(more ?? []));
      },
      error(error) {
        try {
          errors.push(...errorsOf(error));
          end();
        } catch {
          reject(error);
        }
      },
      complete: end,
    });
  });
}

/** An operation of one answer. */
async function ask(client, operation) {
  if (!client.ask) return read(client, operation);
  const { data, errors } = await client.ask(operation);
  return { results: data ? [data] : [], codes: codes(errors) };
}

const said = ({ results, codes }) => ({ texts: results.map((data) => data.chatCompletion.text), codes });

const SCENARIOS = {
  async whole(client) {
    const list = await ask(client, MODELS);
    const answer = await ask(client, chat());
    return {
      models: list.results.flatMap(({ models }) => models.map(({ id }) => id)),
      texts: answer.results.flatMap(({ createChatCompletion: { choices } }) => choices.map(({ text }) => text)),
      codes: [...list.codes, ...answer.codes],
    };
  },

  stream: async (client) => said(await read(client, stream())),

  failing: async (client) => ({
    whole: (await ask(client, chat("nonsense"))).codes,
    stream: (await read(client, stream("nonsense"))).codes,
  }),

  async refused(client) {
    try {
      return said(await read(client, stream()));
    } catch ({ code, reason, message }) {
      return { refused: [code, reason, message].filter(Boolean).join(" ") };
    }
  },

  leaving: (client) =>
    new Promise((resolve, reject) => {
      const leave = client.subscribe(stream(), {
        next({ data }) {
          if (!data?.chatCompletion.text) return;
          setImmediate(() => {
            leave();
            resolve({ left: true });
          });
        },
        error: reject,
        complete() {},
      });
    }),
};

const [name, scenario, where] = process.argv.slice(2);
const { default: connect } = await import(`./${name}.mjs`);
const client = connect(JSON.parse(where));
console.log(JSON.stringify(await SCENARIOS[scenario](client)));
for await (const _ of process.stdin);
await client.close();
