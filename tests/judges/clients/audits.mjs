// npm graphql-http's audits of a server, as a line of JSON: node audits.mjs URL AUTHORIZATION
import { auditServer } from "graphql-http";

const [url, authorization] = process.argv.slice(2);
const fetchFn = (where, { headers, ...init } = {}) => fetch(where, { ...init, headers: { ...headers, authorization } });
const results = await auditServer({ url, fetchFn });
console.log(JSON.stringify(results.map(({ id, name, status, reason }) => ({ id, name, status, reason }))));
