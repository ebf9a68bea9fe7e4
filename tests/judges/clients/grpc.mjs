// npm @grpc/grpc-js, with @grpc/proto-loader: node grpc.mjs '{"address", "folders", "files", "calls"}'
//
// `files` are .proto files, in `folders`. A call is {method, request, metadata?, deadline?, leave?}: `deadline` in
// milliseconds; `leave` after so many messages, 0: at a line on stdin. What came of each is printed as a line of JSON:
// {messages, code, message, details, initial, trailing}. The channels stay open until stdin is closed.
import { createInterface } from "node:readline";
import { Metadata, credentials, loadPackageDefinition, status } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const { address, folders, files, calls } = JSON.parse(process.argv[2]);
const definition = loadSync(files, { includeDirs: folders, longs: String, enums: String, bytes: String });
const packages = loadPackageDefinition(definition);
const told = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** The messages in grpc-status-details-bin, each with its type. */
function detailsOf(trailing) {
  const [raw] = trailing.get("grpc-status-details-bin");
  if (!raw) return [];
  return definition["google.rpc.Status"].deserialize(raw).details.map(({ type_url: url, value }) => {
    const type = url.split("/").pop();
    return { type, ...definition[type].deserialize(Buffer.from(value, "base64")) };
  });
}

const named = (dotted) => dotted.split(".").reduce((found, name) => found[name], packages);
const texts = (metadata) =>
  Object.fromEntries(Object.entries(metadata.getMap()).filter(([, value]) => typeof value === "string"));

const clients = new Map();
function clientOf(service) {
  if (!clients.has(service)) clients.set(service, new (named(service))(address, credentials.createInsecure()));
  return clients.get(service);
}

function begin({ method, request, metadata = {}, deadline, leave }, done) {
  const [service, name] = method.split("/");
  const client = clientOf(service);
  const given = new Metadata();
  for (const [key, value] of Object.entries(metadata)) given.set(key, value);
  const options = deadline === undefined ? {} : { deadline: Date.now() + deadline };

  const messages = [];
  let initial = {};
  const receive = (message) => {
    messages.push(message);
    if (messages.length === leave) call.cancel();
  };
  const streams = client[name].responseStream;
  const call = streams
    ? client[name](request, given, options)
    : client[name](request, given, options, (error, message) => message && receive(message));
  if (streams) call.on("data", receive).on("error", () => {}); // `status` tells it, too
  call.on("metadata", (received) => (initial = texts(received)));
  call.on("status", ({ code, details: message, metadata: trailing }) => {
    const details = detailsOf(trailing);
    done({ messages, code: status[code], message, details, initial, trailing: texts(trailing) });
  });
  if (leave === 0) told.next().then(() => call.cancel());
}

for (const call of calls) console.log(JSON.stringify(await new Promise((done) => begin(call, done))));
while (!(await told.next()).done);
for (const client of clients.values()) client.close();
