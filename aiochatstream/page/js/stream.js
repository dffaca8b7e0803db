// Server-sent events out of the body of a fetch: EventSource can only GET.

/**
 * @typedef {{ event: string, data: any }} ServerEvent one event, its data parsed as JSON
 */

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
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<ServerEvent, void, void>} its events, as they arrive; it throws what reading throws
 */
export async function* readEvents(body) {
  const parser = new EventParser();
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {}); // who stops listening hangs up
  }
}
