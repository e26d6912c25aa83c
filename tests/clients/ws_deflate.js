// A client of Node's ws that compresses: sends each message when the echo of the one before is back.
//
// Usage: node ws_deflate.js URL OPTIONS, where OPTIONS are those of perMessageDeflate in JSON. Tells on stdout,
// in JSON, what was agreed on, whether every echo was right, and the bytes each way.

const WebSocket = require("ws");

const [url, options] = process.argv.slice(2);
const noise = Buffer.from(Array.from({ length: 3000 }, (_, index) => (index * index * 31 + index * 7) >> 3));
const messages = [
  "hello",
  "",
  Buffer.alloc(0),
  "hello ".repeat(100),
  "aü€𝄞".repeat(5000),
  noise,
  noise,
  Buffer.alloc(1000000),
  "x".repeat(65536),
];
const ws = new WebSocket(url, { perMessageDeflate: { threshold: 0, ...JSON.parse(options) } });
const extensions = [];
const wrong = [];
let next = 0;

ws.on("upgrade", (response) => extensions.push(response.headers["sec-websocket-extensions"]));
ws.on("open", () => ws.send(messages[0]));
ws.on("message", (data, binary) => {
  const sent = messages[next];
  if (binary !== Buffer.isBuffer(sent) || !data.equals(Buffer.from(sent))) {
    wrong.push(next);
  }
  next += 1;
  if (next < messages.length) {
    ws.send(messages[next]);
  } else {
    ws.close(1000);
  }
});
ws.on("error", (error) => wrong.push(error.message));
ws.on("close", (code) => {
  const { bytesRead, bytesWritten } = ws._socket ?? {};
  console.log(JSON.stringify({ extensions: extensions[0] ?? null, code, echoes: next, wrong, bytesRead, bytesWritten }));
});
