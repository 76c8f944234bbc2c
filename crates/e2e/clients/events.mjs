// Events over a WebSocket, as a page has them: the key comes as a subprotocol. Environment: DISPENSE_ADDRESS (host:port),
// DISPENSE_API_KEY.
import assert from "node:assert/strict";
import WebSocket from "ws";

const address = process.env.DISPENSE_ADDRESS;
const key = process.env.DISPENSE_API_KEY;
const url = `ws://${address}/api/v1/events`;
const protocols = (secret) => ["dispense.events.v1", `bearer.${secret}`];
const json = { "x-api-key": key, "content-type": "application/json" };

/// Opens one and gathers its events until `until` says that it is enough.
function follow(query, options, until) {
  return new Promise((resolve, reject) => {
    const events = [];
    const socket = new WebSocket(`${url}${query}`, options.protocols ?? [], { headers: options.headers, origin: options.origin });
    const timer = setTimeout(() => reject(new Error(`too few: ${JSON.stringify(events)}`)), 20_000);
    const end = (settle, value) => {
      clearTimeout(timer);
      socket.terminate();
      settle(value);
    };
    socket.on("open", () => options.opened?.());
    socket.on("message", (text) => {
      events.push(JSON.parse(text));
      if (until(events)) end(resolve, { events, protocol: socket.protocol });
    });
    socket.on("close", (code, reason) => end(resolve, { events, code, reason: reason.toString() }));
    socket.on("unexpected-response", (_request, response) => end(resolve, { events, status: response.statusCode }));
    socket.on("error", (error) => end(reject, error));
  });
}

const create = () => fetch(`http://${address}/api/v1/sandboxes`, { method: "POST", headers: json, body: '{"name":"seen"}' });
const runs = (events) => events.some((event) => event.data.name === "seen" && event.data.state === "running");
const followed = await follow("", { protocols: protocols(key), opened: create }, runs);
assert.equal(followed.protocol, "dispense.events.v1");
const first = followed.events[0];
assert.equal(first.type, "sandbox.created");

// One that comes back goes on where it was, and a program says its key in a header.
const again = await follow(`?after=${first.seq}&noFollow=true`, { headers: { authorization: `Bearer ${key}` } }, () => false);
assert.equal(again.code, 1000);
assert.deepEqual(again.events.slice(0, followed.events.length - 1), followed.events.slice(1));

for (const [what, options, status] of [
  ["no key", {}, 401],
  ["a wrong key", { protocols: protocols("dsp_0") }, 401],
  ["a page of another origin", { protocols: protocols(key), origin: "https://elsewhere.example" }, 403],
  ["another protocol", { protocols: ["chat"], headers: { "x-api-key": key } }, 400],
]) {
  assert.equal((await follow("", options, () => false)).status, status, what);
}
// The server's own pages may.
assert.equal((await follow("?after=0&noFollow=true", { protocols: protocols(key), origin: `http://${address}` }, () => false)).code, 1000);

// One whose key is revoked is sent away, with the reason.
const made = await fetch(`http://${address}/api/v1/keys`, { method: "POST", headers: json, body: '{"name":"guest","role":"viewer"}' });
const guest = await made.json();
const revoke = () => fetch(`http://${address}/api/v1/keys/guest`, { method: "DELETE", headers: json });
const ended = await follow("", { protocols: protocols(guest.secret), opened: revoke }, () => false);
assert.deepEqual([ended.code, ended.reason], [1008, "the API key was revoked or has expired"]);
