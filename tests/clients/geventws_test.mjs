// What a browser cannot show of geventws.js: the clock, chance, and messages that no server sends.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { beforeEach, test } from "node:test";

const script = readFileSync(new URL("../../geventws/static/geventws.js", import.meta.url), "utf8");
// Older Nodes take a file with this name for no module.
const { ReconnectingWebSocket } = await import(`data:text/javascript,${encodeURIComponent(script)}`);

let sockets, timers, listeners, chance;

// Node 18 has none.
globalThis.CustomEvent ??= class extends Event {
  constructor(type, { detail }) {
    super(type);
    this.detail = detail;
  }
};

class FakeWebSocket {
  readyState = 0;
  bufferedAmount = 0;
  sent = [];
  constructor(url, protocols) {
    Object.assign(this, { url: String(url), protocols });
    sockets.push(this);
  }
  send(data) {
    this.sent.push(data);
  }
  close() {}
}

beforeEach(() => {
  [sockets, timers, listeners, chance] = [[], new Map(), new Map(), 1];
  let number = 0;
  Object.assign(globalThis, {
    self: globalThis,
    document: { baseURI: "https://app.example/pages/one?x=1#part", hidden: false },
    WebSocket: FakeWebSocket,
    CloseEvent: class extends Event {},
    addEventListener: (type, listener, { signal }) => {
      listeners.set(type, listener);
      signal.addEventListener("abort", () => listeners.delete(type));
    },
    setTimeout: (run, delay) => (timers.set(++number, { run, delay }), number),
    clearTimeout: (timer) => timers.delete(timer),
  });
  Math.random = () => chance;
});

const last = () => sockets.at(-1);
const lose = (code = 1006) => last().onclose({ code, reason: "", wasClean: false });
const hear = (message) => last().onmessage({ data: JSON.stringify(message), origin: "" });
const since = () => new URL(last().url).searchParams.get("since");

/** Runs the one timer that there is, and returns its delay. */
function pass() {
  assert.equal(timers.size, 1);
  const [[timer, { run, delay }]] = timers;
  timers.delete(timer);
  run();
  return delay;
}

function listened(type, socket) {
  const heard = [];
  socket.addEventListener(type, (event) => heard.push(event));
  return heard;
}

test("waits are drawn between 0 and a bound that doubles up to maxDelay", () => {
  for (const [part, expected] of [
    [0, [0, 0, 0, 0, 0, 0, 0, 0]],
    [0.5, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]],
    [1, [500, 1000, 2000, 4000, 8000, 16_000, 20_000, 20_000]],
  ]) {
    chance = part;
    timers.clear();
    new ReconnectingWebSocket("/ws");
    const waits = expected.map(() => (lose(), pass()));
    assert.deepEqual(waits, expected);
  }
});

test("waits stay finite after a day of failures", () => {
  new ReconnectingWebSocket("/ws");
  for (let count = 0; count < 5000; count += 1) lose(), assert.ok(pass() <= 20_000);
});

test("a connection of less than 10 seconds does not shorten the next wait", () => {
  new ReconnectingWebSocket("/ws");
  lose(), pass(), lose(), pass();
  last().onopen();
  lose();
  assert.equal(pass(), 2000);
  last().onopen();
  assert.equal(pass(), 10_000); // it has settled
  lose();
  assert.equal(pass(), 500);
});

test("a handshake without an answer is given up after 20 seconds", () => {
  const socket = new ReconnectingWebSocket("/ws");
  const given = last();
  assert.equal(pass(), 20_000);
  assert.equal(given.onclose, null);
  assert.equal(socket.state, "waiting");
});

test("it is in no hurry where a page is hidden, and in one where it is seen again", () => {
  const socket = new ReconnectingWebSocket("/ws");
  lose();
  document.hidden = true;
  listeners.get("visibilitychange")();
  assert.equal(socket.state, "waiting");
  document.hidden = false;
  listeners.get("visibilitychange")();
  assert.equal(socket.state, "connecting");
  lose();
  assert.equal(pass(), 500); // and its failures are forgotten
});

test("an end for good leaves no timer and no listener", () => {
  const socket = new ReconnectingWebSocket("/ws");
  last().onopen();
  lose(1000);
  assert.equal(socket.readyState, ReconnectingWebSocket.CLOSED);
  assert.equal(timers.size, 0);
  assert.equal(listeners.size, 0);
});

test("retry decides on codes of the app", () => {
  new ReconnectingWebSocket("/ws", [], { retry: ({ code }) => code !== 4001 });
  lose(4000), pass(), lose(1000), pass();
  const { length } = sockets;
  lose(4001);
  assert.equal(timers.size, 0);
  assert.equal(sockets.length, length);
});

test("only after a handshake that failed a page behind the login is asked", async () => {
  const asked = [];
  let status = 503;
  globalThis.fetch = async (url) => (asked.push(url), status ? { status } : Promise.reject(new TypeError("away")));
  const socket = new ReconnectingWebSocket("/ws", [], { check: "/me" });
  const ends = listened("close", socket);
  last().onopen();
  lose(), pass();
  assert.deepEqual(asked, []);
  for (status of [503, 0]) {
    lose(), await null, await null;
    assert.equal(socket.state, "waiting"), pass();
  }
  status = 401;
  lose(), pass(), await null; // the answer comes too late
  assert.equal(socket.state, "connecting");
  lose(), await null, await null;
  assert.equal(asked.length, 4);
  assert.deepEqual([socket.state, ends.length, timers.size, listeners.size], ["closed", 1, 0, 0]);
});

test("the URL is the page's own kind, with its query and since", () => {
  const socket = new ReconnectingWebSocket("../chat?name=a%26b&tag=c", ["v1"]);
  assert.equal(socket.url, "wss://app.example/chat?name=a%26b&tag=c");
  assert.deepEqual(last().protocols, ["v1"]);
  hear({ at: "5-1" });
  lose(), pass();
  const { searchParams } = new URL(last().url);
  assert.deepEqual([...searchParams], [["name", "a&b"], ["tag", "c"], ["since", "5-1"]]);
});

test("a recovered welcome does not go ahead of what was missed", () => {
  new ReconnectingWebSocket("/ws?since=5-1");
  hear({ at: "9-4", recovered: true });
  hear({ id: "a-2", at: "6-2" });
  lose(), pass();
  assert.equal(since(), "6-2"); // 7-3 and 9-4 never came
});

test("a welcome without recovery says where to go on from, and the gap comes before it", () => {
  const socket = new ReconnectingWebSocket("/ws?since=5-1");
  const order = [];
  socket.addEventListener("gap", ({ detail }) => order.push(detail));
  socket.onmessage = ({ data }) => order.push(data);
  const welcome = { at: "9-4", recovered: false };
  hear(welcome);
  assert.deepEqual(order, [welcome, JSON.stringify(welcome)]);
  lose(), pass();
  assert.equal(since(), "9-4");
});

test("only positions are positions", () => {
  const socket = new ReconnectingWebSocket("/ws");
  const heard = listened("message", socket);
  for (const at of ["2026-11-26T09:00", 5, null, {}, ["5-1"].concat("6-1"), "", "5-", "x5-1"]) hear({ at, recovered: false });
  for (const data of ['"at"', '["at"]', '{"at"', 'null "at"', new ArrayBuffer(4), new Blob(["x"])]) last().onmessage({ data, origin: "" });
  assert.equal(heard.length, 14);
  lose(), pass();
  assert.equal(since(), null);
});

test("what came without a position while the server had no Redis is known when it comes again", () => {
  const socket = new ReconnectingWebSocket("/ws");
  const heard = listened("message", socket);
  const id = "0123456789ab-7";
  hear({ id }), hear({ id, at: "5-1" });
  hear({ id: "the app's own" }), hear({ id: "the app's own" });
  assert.equal(heard.length, 3);
  lose(), pass();
  assert.equal(since(), "5-1");
});

test("of ids the newest thousand are remembered", () => {
  const socket = new ReconnectingWebSocket("/ws");
  const heard = listened("message", socket);
  const say = (number) => hear({ id: `p-${number}`, at: `5-${number}` });
  for (let number = 0; number <= 1000; number += 1) say(number);
  assert.equal(heard.length, 1001);
  say(1), say(1000);
  assert.equal(heard.length, 1001);
  say(0); // forgotten
  assert.equal(heard.length, 1002);
});
