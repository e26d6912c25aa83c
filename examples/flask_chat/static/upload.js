// Files on their way: a WebSocket for each, a progress bar, and a button that cancels.
//
//   to the server     {name, size, key}, then the file's bytes in pieces
//   from the server   {got: bytes}, and at the end {done: true} or {refused: reason}

const PIECE = 64 << 10; // bytes
const AHEAD = 4 * PIECE; // bytes that may be on the way, so that progress is what has arrived
const AT_ONCE = 3; // files

const waiting = [];
let running = 0;

/** Send a file to the WebSocket at this path, and show how far it is in a list. */
export function carry(file, list, path) {
  const row = document.createElement("li");
  const name = document.createElement("bdi");
  const bar = document.createElement("progress");
  const cancel = document.createElement("button");
  name.textContent = file.name;
  Object.assign(bar, { max: file.size || 1, value: 0, ariaLabel: `Progress of ${file.name}` });
  Object.assign(cancel, { type: "button", textContent: "Cancel", ariaLabel: `Cancel ${file.name}` });
  row.append(name, bar, cancel);
  list.append(row);
  const job = { file, path, row, bar, cancel, ws: null };
  cancel.onclick = () => {
    const place = waiting.indexOf(job);
    if (place >= 0) waiting.splice(place, 1);
    job.ws?.close();
    drop(job);
  };
  waiting.push(job);
  next();
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    start(waiting.shift());
  }
}

function start(job) {
  const { file, bar } = job;
  const url = new URL(job.path, document.baseURI);
  url.protocol = url.protocol.replace("http", "ws");
  const ws = (job.ws = new WebSocket(url));
  let sent = 0;
  let isOver = false;
  const pump = () => {
    for (; sent < file.size && sent - bar.value < AHEAD; sent += PIECE) ws.send(file.slice(sent, sent + PIECE));
  };
  ws.onopen = () => {
    ws.send(JSON.stringify({ name: file.name, size: file.size, key: Array.from(crypto.getRandomValues(new Uint32Array(4))).join("-") }));
    pump();
  };
  ws.onmessage = ({ data }) => {
    const { got, done, refused } = JSON.parse(data);
    if (got) bar.value = got;
    if (done) drop(job);
    if (refused) fail(job, refused);
    isOver ||= Boolean(done || refused);
    if (!isOver) pump();
  };
  ws.onclose = () => {
    running -= 1;
    if (!isOver && job.row.isConnected) fail(job, "The connection was lost.");
    next();
  };
}

function fail({ row, bar, cancel, file }, reason) {
  const words = document.createElement("p");
  words.className = "error";
  words.setAttribute("role", "alert");
  bar.replaceWith(document.createElement("span"));
  row.append(words);
  words.textContent = reason;
  cancel.textContent = "Dismiss";
  cancel.ariaLabel = `Dismiss ${file.name}`;
}

// The focus of a keyboard must not fall off the page with the button.
function drop({ row, cancel }) {
  const hadFocus = cancel === document.activeElement;
  row.remove();
  if (hadFocus) document.getElementById("text").focus();
}
