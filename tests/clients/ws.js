// A client of Node's ws: obeys JSON lines on stdin, tells on stdout what it received.
//
// Usage: node ws.js URL. Binary data travels in base64.

const readline = require("readline");
const WebSocket = require("ws");

const ws = new WebSocket(process.argv[2], { perMessageDeflate: false });
const tell = (event) => console.log(JSON.stringify(event));

ws.on("open", () => tell({ kind: "open" }));
ws.on("message", (data, binary) => tell({ kind: binary ? "binary" : "text", data: data.toString("base64") }));
ws.on("pong", (data) => tell({ kind: "pong", data: data.toString("base64") }));
ws.on("error", (error) => tell({ kind: "error", reason: error.message }));
ws.on("close", (code, reason) => {
  tell({ kind: "close", code, reason: reason.toString() });
  process.exit();
});

const actions = {
  send({ data, binary, fin }) {
    ws.send(Buffer.from(data, "base64"), { binary, fin });
  },
  ping({ data }) {
    ws.ping(Buffer.from(data, "base64"));
  },
  close({ code, reason }) {
    ws.close(code, reason);
  },
};

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const order = JSON.parse(line);
  actions[order.action](order);
});
