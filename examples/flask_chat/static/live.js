// The live half of a room's page.
//
//   to the server     {say: text, key}, {typing: true}, {read: true}
//   from the server   {type: "welcome" | "said" | "elsewhere" | "joined" | "left" | "typing" | "refused", …}: see `handlers`
//
// What we say stays in `pending` until it comes back as said: a lost connection loses no message. The server keeps
// a key once, so that a message sent again is not doubled. Messages are HTML of the server, which has escaped them.

import { ReconnectingWebSocket } from "../geventws.js";
import { carry } from "./upload.js";

const TYPING_EVERY = 2_000; // milliseconds
const READ_EVERY = 500; // milliseconds
const TYPING_LASTS = 4_000; // milliseconds
const SAME_BREATH = 300_000; // milliseconds in which one person's messages share a heading
const LOG_LIMIT = 500; // entries

const [room, talk, here, people, count, rooms, alone, log, messages, newer, uploads] =
  ["room", "talk", "here", "people", "count", "rooms", "alone", "log", "messages", "newer", "uploads"].map(byId);
const [typing, state, composer, files, text, error] =
  ["typing", "state", "composer", "files", "text", "error"].map(byId);

const { number, me } = room.dataset;
const title = document.title;
const present = new Map(); // names to the hues of people
const pending = new Map(); // by key: {text, entry}
const typists = new Map(); // names to the timers that take them out
let behind = null; // the message behind which some are missing
let unseen = 0; // messages that came while the page was hidden
let typedAt = 0;
let reading = 0; // the timer that tells the server

const ws = new ReconnectingWebSocket(`${number}/live?since=${here.dataset.since}`, [], {
  check: `${number}/after/${Number.MAX_SAFE_INTEGER}`, // nothing, and without a login a redirect
});

const handlers = {
  welcome(welcome) {
    present.clear();
    for (const [who, hue] of Object.entries(welcome.here)) present.set(who, hue);
    showPeople();
    delete welcome.unread[number]; // they come now
    for (const link of rooms.querySelectorAll("a")) showUnread(link, welcome.unread[link.dataset.room] ?? 0);
    for (const [key, { text }] of pending) transmit({ say: text, key });
    if (behind !== null) catchUp();
    noteRead();
  },

  said({ html }) {
    for (const entry of parse(html)) append(entry);
  },

  elsewhere({ room, number: newest, who }) {
    const link = rooms.querySelector(`[data-room="${room}"]`);
    if (!link || room == number || who === me || newest <= link.dataset.newest) return;
    link.dataset.newest = newest;
    showUnread(link, Number(link.dataset.unread ?? 0) + 1);
  },

  joined({ who, hue }) {
    if (!present.has(who)) note(`${who} joined`);
    present.set(who, hue);
    showPeople();
  },

  left({ who }) {
    if (present.delete(who)) note(`${who} left`);
    showPeople();
  },

  typing({ who }) {
    clearTimeout(typists.get(who));
    typists.set(who, setTimeout(stopsTyping, TYPING_LASTS, who));
    showTypists();
  },

  refused({ key, text: reason }) {
    const ours = pending.get(key);
    pending.delete(key);
    ours?.entry.remove();
    text.value ||= ours?.text ?? "";
    error.textContent = reason;
  },
};

ws.addEventListener("message", ({ data }) => {
  const message = JSON.parse(data);
  handlers[message.type](message);
});
ws.addEventListener("gap", () => {
  behind ??= last();
  catchUp();
});
ws.addEventListener("state", ({ detail }) => {
  state.textContent = { open: "", closed: "" }[detail.state] ?? (detail.failures ? "Reconnecting…" : "");
});
ws.addEventListener("close", ({ code, reason }) => {
  if (code !== 4401) end(reason || "The connection has ended.");
  else if (pending.size || text.value) end("Your login has ended."); // what they wrote stays to be copied
  else location.reload(); // which leads to the login page, and back
});

// The room has forgotten what we missed; the database has not.
async function catchUp() {
  try {
    const answer = await fetch(`${number}/after/${behind ?? last()}`);
    if (answer.redirected) return ws.close(4401);
    if (!answer.ok) throw new Error(answer.statusText);
    for (const entry of parse(await answer.text())) append(entry);
    behind = null;
  } catch {
    if (ws.state === "open") setTimeout(catchUp, 1000); // else with the next welcome
  }
}

function last() {
  return numberOf([...messages.querySelectorAll("[id^=m]")].at(-1)) || 0;
}

function numberOf(entry) {
  return Number(entry?.id.slice(1) || NaN);
}

function end(reason) {
  if (byId("end")) return;
  const box = element("p");
  box.id = "end";
  box.setAttribute("role", "alert");
  const link = element("a", "", "Come in again");
  link.href = location.pathname;
  talk.append(box);
  talk.classList.add("ended");
  box.append(element("span", "", reason), link);
  link.focus();
}

function transmit(message) {
  if (ws.state === "open") ws.send(JSON.stringify(message));
}

function say(words) {
  const key = crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint32Array(4))).join("-");
  const entry = element("article", "message own pending");
  entry.dataset.by = me;
  entry.setAttribute("aria-live", "off"); // a screen reader reads it once, when it is said
  const bubble = element("div", "bubble");
  const line = element("p");
  line.dir = "auto";
  line.append(element("span", "words", words), element("time", "", "sending…"));
  bubble.append(element("bdi", "author", me), line);
  entry.append(bubble);
  pending.set(key, { text: words, entry });
  messages.append(entry);
  regroup(entry);
  scrollToEnd();
  transmit({ say: words, key });
}

function append(entry) {
  if (byId(entry.id)) return;
  const { by, key } = entry.dataset;
  entry.classList.toggle("own", by === me);
  localise(entry);
  const ours = by === me && pending.get(key);
  if (ours) {
    pending.delete(key);
    ours.entry.remove();
  }
  let next = messages.querySelector(".pending"); // what is on its way stays last
  let before = next ? next.previousElementSibling : messages.lastElementChild;
  for (; numberOf(before) > numberOf(entry); before = before.previousElementSibling) next = before;
  messages.insertBefore(entry, next);
  regroup(entry);
  if (next) regroup(next);
  stopsTyping(by);
  while (messages.childElementCount > LOG_LIMIT) messages.firstElementChild.remove();
  newer.hidden = atEnd();
  if (by !== me) noteRead();
  if (by !== me && document.hidden) showUnseen(unseen + 1);
}

function note(words) {
  const entry = element("p", "note", words);
  entry.dir = "auto";
  messages.insertBefore(entry, messages.querySelector(".pending"));
}

// One who says several things in one breath is named once.
function regroup(entry) {
  const before = entry.previousElementSibling;
  const since = time(entry) - time(before);
  entry.classList.toggle("follows", Boolean(entry.dataset.by) && entry.dataset.by === before?.dataset.by && since < SAME_BREATH);
}

function time(entry) {
  return Date.parse(entry?.querySelector("time")?.dateTime) || Date.now();
}

function localise(entry) {
  for (const clock of entry.querySelectorAll("time[datetime]")) {
    const date = new Date(clock.dateTime);
    const today = date.toDateString() === new Date().toDateString();
    clock.textContent = date.toLocaleString([], { timeStyle: "short", dateStyle: today ? undefined : "short" });
  }
}

function showPeople() {
  count.textContent = present.size;
  alone.hidden = present.size > 1;
  people.replaceChildren(
    ...[...present].sort(([a], [b]) => a.localeCompare(b)).map(([who, hue]) => {
      const item = element("li", `hue${hue}`);
      const circle = element("span", "avatar", [...who][0]);
      circle.setAttribute("aria-hidden", "true");
      item.append(circle, element("bdi", "", who));
      if (who === me) item.append(element("span", "you", "you"));
      return item;
    }),
  );
}

function showTypists() {
  const names = new Intl.ListFormat("en").format(typists.keys());
  typing.textContent = names && `${names} ${typists.size > 1 ? "are" : "is"} typing…`;
}

function stopsTyping(who) {
  clearTimeout(typists.get(who));
  if (typists.delete(who)) showTypists();
}

function showUnread(link, number) {
  link.dataset.unread = number;
  link.querySelector(".unread").replaceChildren(...(number ? [`${number} `, element("span", "unseen", "unread")] : []));
}

function showUnseen(number) {
  unseen = number;
  document.title = unseen ? `(${unseen}) ${title}` : title;
}

// Once for many messages that come together.
function noteRead() {
  reading ||= setTimeout(() => {
    reading = 0;
    if (!document.hidden) transmit({ read: true });
  }, READ_EVERY);
}

function atEnd() {
  return log.scrollTop > -60; // the log grows upwards: see chat.css
}

function scrollToEnd() {
  log.scrollTop = 0;
  newer.hidden = true;
}

function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return [...template.content.children];
}

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function byId(id) {
  return document.getElementById(id);
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const words = text.value.trim();
  const [length, limit] = [[...words].length, Number(text.dataset.limit)];
  error.textContent = length > limit ? `That is ${length} characters; a message has at most ${limit}.` : "";
  if (!length || length > limit) return;
  text.value = "";
  typedAt = 0;
  text.focus();
  say(words);
});

text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  composer.requestSubmit();
});

text.addEventListener("input", () => {
  if (!text.value || Date.now() - typedAt < TYPING_EVERY) return;
  typedAt = Date.now();
  transmit({ typing: true });
});

const send = (chosen) => [...chosen].forEach((file) => carry(file, uploads, `${number}/upload`));
files.addEventListener("change", () => {
  send(files.files);
  files.value = "";
});
text.addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  send(event.clipboardData.files);
});
for (const type of ["dragenter", "dragover", "dragleave", "drop"])
  talk.addEventListener(type, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    talk.classList.toggle("dropping", type === "dragenter" || type === "dragover");
    if (type === "drop") send(event.dataTransfer.files);
  });

log.addEventListener("scroll", () => {
  if (atEnd()) newer.hidden = true;
});
newer.addEventListener("click", scrollToEnd);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  showUnseen(0);
  noteRead();
});

localise(messages);
for (const entry of messages.children) regroup(entry);
