// Server-sent events from the body of a fetch: EventSource supports GET only.

/**
 * @typedef {{ event: string, data: any }} ServerEvent data is parsed JSON
 */

/** Milliseconds without data after which a connection is considered lost: the server sends a comment every 15 s. */
export const IDLE_TIMEOUT_MS = 40_000;

/** Incremental parser of event streams. */
export class EventParser {
  #rest = "";
  #event = "";
  /** @type {string[]} */
  #data = [];

  /**
   * Add `text`, a piece of any length.
   * @param {string} text
   * @returns {ServerEvent[]} the events that `text` completes
   */
  push(text) {
    /** @type {ServerEvent[]} */
    const events = [];
    // a CR at the end may be half of a CRLF: it waits for the next piece
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      const event = this.#line(line);
      if (event) events.push(event);
    }
    return events;
  }

  /** @param {string} line */
  #line(line) {
    if (line === "") return this.#complete();
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "event") this.#event = value;
    else if (field === "data") this.#data.push(value);
    return null; // comments have an empty field name; other fields are ignored
  }

  #complete() {
    const [event, data] = [this.#event || "message", this.#data];
    [this.#event, this.#data] = ["", []];
    return data.length ? { event, data: JSON.parse(data.join("\n")) } : null;
  }
}

/**
 * Yield the events of `body` as they arrive. Raises errors of the connection, and an Error after IDLE_TIMEOUT_MS without
 * data.
 * @param {ReadableStream<Uint8Array>} body
 * @param {() => void} [onEnd] called when reading ends
 * @returns {AsyncGenerator<ServerEvent, void, void>}
 */
export async function* readEvents(body, onEnd = () => {}) {
  const parser = new EventParser();
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await withTimeout(reader.read());
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {}); // closes the connection
    onEnd();
  }
}

/**
 * Read `events` to the end: cancelling the body would close the connection.
 * @param {AsyncGenerator<ServerEvent, void, void>} events
 */
export async function drain(events) {
  try {
    while (!(await events.next()).done);
  } catch {
    // the answer has already been received
  }
}

/**
 * @template Value
 * @param {Promise<Value>} task
 * @returns {Promise<Value>}
 */
async function withTimeout(task) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const timeout = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`No data for ${IDLE_TIMEOUT_MS / 1000} s.`)), IDLE_TIMEOUT_MS);
  });
  try {
    return await /** @type {Promise<Value>} */ (Promise.race([task, timeout]));
  } finally {
    clearTimeout(timer);
  }
}
