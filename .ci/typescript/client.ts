// What a client does, with the types that the contract gives: run against a live system by `.ci/run`.
import { deepStrictEqual, strictEqual } from "node:assert";
import { randomUUID } from "node:crypto";
import createClient from "openapi-fetch";
import type { components, paths } from "./contract.js";

type User = components["schemas"]["User"];
type Command = components["schemas"]["Command"];

const [baseUrl, key] = process.argv.slice(2);
if (baseUrl === undefined) throw new Error("the address is missing; add it, like http://127.0.0.1:8080");
const run = randomUUID();

// README: begin
const api = createClient<paths>({ baseUrl, headers: key ? { Authorization: `Bearer ${key}` } : {} });
const created = await api.POST("/v1/users", {
  params: { header: { Prefer: "wait=20", "Idempotency-Key": run } },
  body: { email: `ada-${run}@example.org`, name: "Ada" },
});
if (created.error) throw new Error(`${created.error.title} (${created.error.type}), trace ${created.error.trace_id}`);
// A user when the outcome came within the wait and the key may read users, else the command that creates it.
const ada = "version" in created.data ? created.data : await outcome(created.data);
// README: end

async function outcome(command: Command): Promise<User> {
  while (command.status === "pending") {
    const params = { path: { command_id: command.id }, header: { Prefer: "wait=30" } };
    const { data, error } = await api.GET("/v1/commands/{command_id}", { params });
    if (error) throw new Error(error.title);
    command = data;
  }
  if (command.status !== "succeeded" || command.user_id === undefined) throw new Error(`the command ${command.status}`);
  const { data, error } = await api.GET("/v1/users/{user_id}", { params: { path: { user_id: command.user_id } } });
  if (error) throw new Error(error.title);
  return data;
}

strictEqual(ada.name, "Ada");
strictEqual(created.response.headers.get("etag"), '"1"');

// Without a wait the answer is the command, and its outcome can be asked for.
const later = await api.POST("/v1/users", { body: { email: `bob-${run}@example.org`, name: "Bob" } });
if (!later.data || "version" in later.data) throw new Error("a command was expected");
const bob = await outcome(later.data);

const path = { user_id: ada.id };
const read = await api.GET("/v1/users/{user_id}", { params: { path } });
deepStrictEqual(read.data, ada);

// Changed only by whoever saw the current version.
const rename = (name: string) =>
  api.PATCH("/v1/users/{user_id}", {
    params: { path, header: { "If-Match": read.response.headers.get("etag") ?? "", Prefer: "wait=20" } },
    headers: { "Content-Type": "application/merge-patch+json" },
    body: { name },
  });
const renamed = await rename("Ada Lovelace");
strictEqual(renamed.data && "version" in renamed.data ? renamed.data.name : undefined, "Ada Lovelace");
const late = await rename("Too late");
strictEqual(late.error?.type, "/problems/version-lost");
strictEqual(late.error.status, 412);

const invalid = await api.POST("/v1/users", { body: { email: "no address", name: "Eve" } });
deepStrictEqual(invalid.error?.errors?.map((fault) => fault.field), ["email"]);

// Every page of the directory.
const found = new Set<string>();
let cursor: string | undefined;
do {
  const query = { limit: 1, ...(cursor === undefined ? {} : { cursor }) };
  const { data, error } = await api.GET("/v1/users", { params: { query } });
  if (error) throw new Error(error.title);
  data.items.forEach((user) => found.add(user.id));
  cursor = data.next_cursor;
} while (cursor !== undefined);
strictEqual([ada.id, bob.id].every((id) => found.has(id)), true);

const deleted = await api.DELETE("/v1/users/{user_id}", { params: { path, header: { Prefer: "wait=20" } } });
strictEqual(deleted.response.status, 204);
console.log(`created, read, changed, listed and deleted: ${ada.id}`);
