// Server-sent events out of the body of a fetch: EventSource can only GET.

/**
 * @typedef {{ event: string, data: any }} ServerEvent one event, its data parsed as JSON
 */

/** Milliseconds without a byte after which a connection is dead: the server sends a comment every 15 s. */
export const SILENCE_MS = 40_000;

/** Takes text as it arrives, in pieces of any size, and gives the events that are complete. */
export class EventParser {
  #rest = "";
  #event = "";
  /** @type {string[]} */
  #data = [];

  /**
   * @param {string} text what has arrived
   * @returns {ServerEvent[]} the events that this completes
   */
  push(text) {
    /** @type {ServerEvent[]} */
    const events = [];
    // a CR at the very end may be half of a CRLF: it waits for what follows
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
    return null; // a comment has an empty field name, others are of no use here
  }

  #complete() {
    const [event, data] = [this.#event || "message", this.#data];
    [this.#event, this.#data] = ["", []];
    return data.length ? { event, data: JSON.parse(data.join("\n")) } : null;
  }
}

/**
 * Yield the events of `body` as they arrive. Raises what reading raises, and an Error after SILENCE_MS without a byte.
 * @param {ReadableStream<Uint8Array>} body
 * @param {() => void} [over] called when nothing more is read
 * @returns {AsyncGenerator<ServerEvent, void, void>}
 */
export async function* readEvents(body, over = () => {}) {
  const parser = new EventParser();
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await inTime(reader.read());
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {}); // who stops listening hangs up
    over();
  }
}

/**
 * @template Value
 * @param {Promise<Value>} reading
 * @returns {Promise<Value>}
 */
async function inTime(reading) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`Nothing came for ${SILENCE_MS / 1000} s.`)), SILENCE_MS);
  });
  try {
    return await /** @type {Promise<Value>} */ (Promise.race([reading, silence]));
  } finally {
    clearTimeout(timer);
  }
}
