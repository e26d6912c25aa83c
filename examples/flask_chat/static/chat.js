// The page's half of the chat.
//
//   to the server     {join: name, key}, {say: text, id}, {ping: true}
//   from the server   {type: "welcome" | "joined" | "left" | "said" | "error" | "pong", …}: see `handlers`
//
// What we say stays in `pending` until the server has said it to everyone: a lost connection loses no message.
// What people write enters the page through textContent only.

const FIRST_RETRY = 500; // milliseconds, doubled by each failure
const LAST_RETRY = 20_000;
const PING_INTERVAL = 25_000; // milliseconds
const ANSWER_TIMEOUT = 10_000; // milliseconds of silence after we asked for something
const OTHER_WINDOW = 4000; // the close code for: you came in again from another window
const SAME_BREATH = 300; // seconds in which one person's messages share a heading
const LOG_LIMIT = 500; // entries

const [state, entrance, nameField, nameError, room, people, count] =
  ["state", "entrance", "name", "name-error", "room", "people", "count"].map((id) => document.getElementById(id));
const [log, alone, newer, composer, textField, textError] =
  ["log", "alone", "newer", "composer", "text", "text-error"].map((id) => document.getElementById(id));

const title = document.title;
const key = remembered("key") ?? randomId(); // tells the server that a returning browser is the same one
const members = new Map(); // name: {name, id}
const pending = new Map(); // message id: {text, entry}
const shown = new Set(); // message ids
const hues = new Map(); // person's id: degrees

let socket = null;
let welcomed = false; // on this socket
let failures = 0;
let retry, overdue; // timers
let me = null; // {name, id}, since the first welcome
let following = true; // the log shows its end
let unread = 0;

const handlers = {
  welcome({ you, members: present, history }) {
    const again = me !== null;
    failures = 0;
    welcomed = true;
    me = you;
    remember("key", key);
    rememberName(you.name);
    nameField.value = you.name;
    members.clear();
    for (const who of present) members.set(who.name, who);
    showPeople();
    setState("connected", "Connected");
    log.setAttribute("aria-busy", "true"); // nobody wants the whole history read aloud
    history.forEach(handlers.said);
    log.removeAttribute("aria-busy");
    if (again) note("You are connected again");
    enter();
    for (const [id, { text }] of pending) transmit({ say: text, id });
  },

  joined({ who }) {
    members.set(who.name, who);
    showPeople();
    note(" joined", who.name);
  },

  left({ who }) {
    members.delete(who.name);
    showPeople();
    note(" left", who.name);
  },

  said(message) {
    if (shown.has(message.id)) return;
    shown.add(message.id);
    const ours = pending.get(message.id);
    if (pending.delete(message.id)) {
      ours.entry.classList.remove("pending");
      ours.entry.querySelector("time").replaceWith(clock(message.time));
      return;
    }
    append(messageEntry(message));
    if (document.hidden) setUnread(unread + 1);
  },

  error({ text, id }) {
    const ours = pending.get(id);
    if (!ours) return leave(text);
    pending.delete(id);
    ours.entry.remove();
    textField.value ||= ours.text;
    textError.textContent = text;
  },

  pong() {},
};

function connect() {
  forget();
  setState("connecting", failures ? "Reconnecting…" : "Connecting…");
  const url = new URL("chat", document.baseURI);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  socket = new WebSocket(url);
  socket.onopen = () => socket.send(JSON.stringify({ join: nameField.value, key }));
  socket.onmessage = ({ data }) => {
    overdue = clearTimeout(overdue);
    const event = JSON.parse(data);
    handlers[event.type](event);
  };
  socket.onclose = ({ code, reason }) => (code === OTHER_WINDOW ? leave(reason) : reconnect());
  expectAnswer();
}

function reconnect() {
  forget();
  setState("lost", "Reconnecting…");
  // Without jitter, all the browsers that a restart cut off would come back in the same instant.
  const wait = Math.min(LAST_RETRY, FIRST_RETRY * 2 ** failures) * (0.5 + Math.random() / 2);
  failures += 1;
  retry = setTimeout(connect, wait);
}

// A socket we gave up must not speak to us again: it may take minutes to notice that its peer is gone.
function forget() {
  retry = clearTimeout(retry);
  overdue = clearTimeout(overdue);
  welcomed = false;
  if (!socket) return;
  socket.onopen = socket.onmessage = socket.onclose = null;
  socket.close();
  socket = null;
}

function transmit(event) {
  if (!welcomed) return;
  socket.send(JSON.stringify(event));
  expectAnswer();
}

function expectAnswer() {
  overdue ??= setTimeout(reconnect, ANSWER_TIMEOUT);
}

function enter() {
  if (!room.hidden) return;
  entrance.hidden = true;
  room.hidden = false;
  scrollToEnd();
  textField.focus();
}

function leave(reason) {
  forget();
  failures = 0;
  setState("idle", "Not connected");
  room.hidden = true;
  entrance.hidden = false;
  nameError.textContent = reason;
  nameField.focus();
  nameField.select();
}

function say(text) {
  const id = randomId();
  const entry = messageEntry({ who: me, text });
  append(entry);
  scrollToEnd();
  pending.set(id, { text, entry });
  transmit({ say: text, id });
}

function messageEntry({ who, text, time }) {
  const entry = element("article", "message");
  colour(entry, who);
  entry.classList.toggle("own", who.id === me.id);
  entry.classList.toggle("pending", !time);
  Object.assign(entry.dataset, { by: who.id, time: time ?? Date.now() / 1000 });
  const bubble = element("div", "bubble");
  const line = element("p");
  line.dir = "auto";
  line.append(element("span", "words", text), time ? clock(time) : element("time", "", "sending…"));
  bubble.append(element("bdi", "author", who.name), line);
  entry.append(avatar(who), bubble);
  return entry;
}

function note(words, name = "") {
  const entry = element("p", "note");
  entry.append(element("bdi", "", name), words);
  append(entry);
}

function append(entry) {
  const atEnd = following;
  const next = entry.matches(".pending") ? null : log.querySelector(".pending"); // what is on its way stays last
  log.insertBefore(entry, next);
  for (const one of [entry, next]) one?.classList.toggle("follows", follows(one));
  while (log.childElementCount > LOG_LIMIT) log.firstElementChild.remove();
  if (atEnd) scrollToEnd();
  else newer.hidden = false;
}

function follows({ dataset, previousElementSibling: before }) {
  if (!dataset.by || dataset.by !== before?.dataset.by) return false;
  return dataset.time - before.dataset.time < SAME_BREATH;
}

function clock(seconds) {
  const date = new Date(seconds * 1000);
  const today = date.toDateString() === new Date().toDateString();
  const text = date.toLocaleString([], { timeStyle: "short", dateStyle: today ? undefined : "short" });
  const time = element("time", "", text);
  time.dateTime = date.toISOString();
  return time;
}

function avatar({ name }) {
  const circle = element("span", "avatar", [...name][0].toUpperCase());
  circle.setAttribute("aria-hidden", "true");
  return circle;
}

// People get hues a golden angle apart in the order they appear, so that no two seem alike.
function colour(entry, { id }) {
  if (!hues.has(id)) hues.set(id, (250 + 137.5 * hues.size) % 360);
  entry.style.setProperty("--hue", hues.get(id));
}

function showPeople() {
  count.textContent = members.size;
  alone.hidden = members.size > 1;
  people.replaceChildren(
    ...[...members.values()].map((who) => {
      const item = element("li");
      colour(item, who);
      item.append(avatar(who), element("bdi", "", who.name));
      if (who.name === me.name) item.append(element("span", "you", "you"));
      return item;
    }),
  );
}

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function setState(kind, text) {
  state.dataset.state = kind;
  state.textContent = text;
}

function setUnread(number) {
  unread = number;
  document.title = unread ? `(${unread}) ${title}` : title;
}

function scrollToEnd() {
  log.scrollTop = log.scrollHeight;
  newer.hidden = true;
}

function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Private windows may forbid storage: the chat works without it.
function remembered(item) {
  try {
    return localStorage.getItem(`chat.${item}`);
  } catch {
    return null;
  }
}

function remember(item, value) {
  try {
    localStorage.setItem(`chat.${item}`, value);
  } catch {}
}

// Of this tab alone, for a reload: a second tab is a second person, until it gives the first one's name.
function rememberName(name) {
  try {
    sessionStorage.setItem("chat.name", name);
  } catch {}
}

function rememberedName() {
  try {
    return sessionStorage.getItem("chat.name");
  } catch {
    return null;
  }
}

entrance.addEventListener("submit", (event) => {
  event.preventDefault();
  nameError.textContent = nameField.value.trim() ? "" : "Please give a name.";
  if (nameError.textContent) nameField.focus();
  else connect();
});

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = textField.value.trim();
  const [length, limit] = [[...text].length, Number(textField.dataset.limit)];
  textError.textContent = length > limit ? `That is ${length} characters; a message has at most ${limit}.` : "";
  if (!length || length > limit) return;
  textField.value = "";
  textField.focus();
  say(text);
});

textField.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  composer.requestSubmit();
});

log.addEventListener("scroll", () => {
  following = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  if (following) newer.hidden = true;
});
newer.addEventListener("click", scrollToEnd);
new ResizeObserver(() => following && scrollToEnd()).observe(log);

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  setUnread(0);
  if (retry) connect(); // a hidden page's timers are slow
  else transmit({ ping: true });
});
window.addEventListener("online", () => (retry || socket) && connect()); // the old network's socket is dead

// The page does not see the server's pings: only an answer shows that a silent connection is alive.
setInterval(() => transmit({ ping: true }), PING_INTERVAL);

nameField.value = rememberedName() ?? "";
