// geventws in the browser: see docs/client.md

const DEFAULTS = {
  retry: (/** @type {typeof LOST} */ { code }) => [1001, 1006, 1011, 1012, 1013, 1014].includes(code),
  delay: 500, // ms: the longest first wait
  maxDelay: 20_000,
  settled: 10_000, // after which a loss is a first one
  timeout: 20_000, // of a handshake
  attempts: Infinity,
  maxQueue: 100, // messages
  maxQueueBytes: 1 << 20,
  check: "", // URL behind the same login
};
const LOST = { code: 1006, reason: "", wasClean: false };

/** A WebSocket that comes back and goes on where it was. */
export class ReconnectingWebSocket extends /** @type {typeof WebSocket} */ (/** @type {any} */ (EventTarget)) {
  #state = "connecting";
  #failures = 0; // in a row
  #timer = 0;
  #queue = Array();
  #seen = new Set();
  #end = new AbortController();
  #ws = /** @type {WebSocket} */ (Object());
  #url;
  #options;

  /** @param {string | URL} url @param {string | string[]} protocols @param {Partial<typeof DEFAULTS>} options */
  constructor(url, protocols = [], options = {}) {
    super(url);
    this.#url = new URL(url, self.document?.baseURI ?? location.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#options = { ...DEFAULTS, ...options, protocols };
    for (const type of ["open", "message", "error", "close"])
      this.addEventListener(type, (event) => /** @type {any} */ (this)["on" + type]?.(event));
    this.#connect();
    const listen = (type = "", act = () => {}) => addEventListener(type, act, this.#end);
    listen("online", () => this.#hurry());
    listen("pageshow", () => this.#hurry());
    listen("visibilitychange", () => document.hidden || this.#hurry()); // hidden timers are slow
    listen("offline", () => this.#giveUp());
    listen("pagehide", () => this.#giveUp()); // no open page is kept
  }

  get url() { return this.#url.href; }
  get protocol() { return this.#ws.protocol; }
  get extensions() { return this.#ws.extensions; }
  get bufferedAmount() { return this.#ws.bufferedAmount + new Blob(this.#queue).size; }
  get binaryType() { return this.#ws.binaryType; }
  set binaryType(type) { this.#ws.binaryType = type; }
  get state() { return this.#state; }
  get readyState() { return Object({ open: 1, closing: 2, closed: 3 })[this.#state] ?? 0; }

  /** Throws QuotaExceededError where too much waits. @param {any} data */
  send(data) {
    if (this.readyState) return this.#ws.send(data);
    const queue = [...this.#queue, typeof data === "string" ? data : new Blob([data])];
    if (queue.length > this.#options.maxQueue || new Blob(queue).size > this.#options.maxQueueBytes)
      throw new DOMException(`${this.#queue.length} messages wait already`, "QuotaExceededError");
    this.#queue = queue;
  }

  /** @param {[number?, string?]} end */
  close(...end) {
    this.#ws.close(...end); // throws for a bad code
    const [code = 1005, reason = ""] = end;
    if (this.#state === "waiting") this.#wait(0, () => this.#finish({ code, reason, wasClean: true }));
    if (this.readyState < 2) this.#change("closing");
  }

  #connect() {
    const ws = new WebSocket(this.#url, this.#options.protocols);
    ws.binaryType = this.binaryType ?? "blob";
    ws.onopen = () => {
      this.#wait(this.#options.settled, () => (this.#failures = 0));
      this.#change("open");
      this.dispatchEvent(new Event("open"));
      for (const data of this.#queue.splice(0)) ws.send(data);
    };
    ws.onmessage = ({ data, origin }) =>
      this.#isNew(data) && this.dispatchEvent(new MessageEvent("message", { data, origin }));
    ws.onclose = ({ code, reason, wasClean }) => this.#lose({ code, reason, wasClean });
    this.#ws = ws;
    this.#wait(this.#options.timeout, () => this.#giveUp());
    this.#change("connecting");
  }

  #isNew(data = "") {
    let message = Object();
    try {
      if (/"(at|id)"/.test(data)) message = JSON.parse(data);
    } catch {}
    const { id, at, recovered } = message;
    const placed = /^\d+-\d+$/.test(at); // not in an outage
    if (!placed && !/^[\da-f]{12}-\d+$/.test(id)) return true;
    // What was missed comes behind this welcome.
    if (placed && (id || !recovered)) this.#url.searchParams.set("since", at);
    if (!id && recovered === false) this.dispatchEvent(new CustomEvent("gap", { detail: message }));
    if (id && this.#seen.size === this.#seen.add(id).size) return false;
    if (this.#seen.size > 1000) this.#seen.delete(this.#seen.values().next().value);
    return true;
  }

  #hurry() {
    if (this.#state !== "waiting") return;
    this.#failures = 0;
    this.#connect();
  }

  #giveUp() {
    if (this.readyState > 1 || this.#state === "waiting") return;
    const ws = this.#ws;
    ws.onopen = ws.onmessage = ws.onclose = null;
    ws.close();
    this.#lose(LOST);
  }

  #lose(end = LOST) {
    const { retry, delay, maxDelay, attempts, check } = this.#options;
    if (this.readyState > 1 || this.#failures >= attempts || !retry(end)) return this.#finish(end);
    if (check && this.#state === "connecting")
      fetch(check, { redirect: "manual" }).then(({ status }) => {
        if (this.#state === "waiting" && [0, 401, 403].includes(status)) this.#finish({ ...LOST, code: 4401 });
      }, () => {}); // 0 is a redirect
    const wait = Math.random() * Math.min(maxDelay, delay * 2 ** this.#failures++); // full jitter
    this.#wait(wait, () => this.#connect());
    this.#change("waiting", { delay: wait, ...end });
  }

  #finish(end = LOST) {
    clearTimeout(this.#timer);
    this.#end.abort();
    this.#change("closed", end);
    if (!end.wasClean) this.dispatchEvent(new Event("error"));
    this.dispatchEvent(new CloseEvent("close", end));
  }

  #wait(delay = 0, then = () => {}) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(then, delay);
  }

  #change(state = "", about = {}) {
    this.#state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, failures: this.#failures, ...about } }));
  }
}
for (const it of [ReconnectingWebSocket, ReconnectingWebSocket.prototype])
  Object.assign(it, { CONNECTING: 0, OPEN: 1, CLOSING: 2, CLOSED: 3 });
