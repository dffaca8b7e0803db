// One conversation as this tab sees it: what was said, what is being answered, and what the server has not taken.

import { ApiError, errorOf } from "./api.js";
import { asked, fieldsOf, turnsOf } from "./turns.js";

/** @typedef {import("./api.js").Api} Api */
/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./stream.js").ServerEvent} ServerEvent */

/** @typedef {import("./turns.js").Ask} Ask */
/** @typedef {import("./turns.js").Turn} Turn */

/**
 * @typedef {object} Refused what was asked and not answered
 * @property {Ask} ask
 * @property {ApiError | null} error null: the page was left before the answer began
 * @property {number | null} at when it is asked again by itself, milliseconds since 1970
 */

/** Milliseconds between two looks at an answer that another tab is told. */
const POLL_MS = 1000;

/** Milliseconds until a lost connection is tried again. */
const RECOVER_MS = 2000;

/** How often a refused message is sent again by itself. */
const AUTOMATIC_TRIES = 20;

const EVENTS_KEPT = 1000;

/** Codes of an answer whose connection was closed here. */
const STOPPED = "stopped";
const CLEARED = "cleared";

/**
 * Tells `change` (turns came, went, or changed state), `text` (the newest answer grew), `event` (the server said
 * something), `returned` (a message that was not answered; detail is its text), `said` (words of the server's own),
 * `dropped` (the oldest turns went, for want of room), `unkept` (the newest one has no room).
 */
export class Chat extends EventTarget {
  /** @type {Turn[]} */
  turns = [];
  /** @type {Turn | null} the one that this tab is told */
  busy = null;
  /** Place in the queue; 0: not in it. */
  position = 0;
  /** @type {Refused | null} */
  refused = null;
  /** @type {ApiError | null} why the history is not here */
  failure = null;
  loaded = false;
  /** Whether the newest answer was for a role that has the developer's tool. */
  devTool = false;
  /** @type {(ServerEvent & { at: number })[]} as they came, with seconds since they were asked for */
  events = [];
  /** @type {number | null} the conversation's turn number on the server */
  #number = null;
  #tries = 0;
  #pollTimer = 0;
  #retryTimer = 0;
  /** Whether an earlier visit's message was looked for. */
  #settled = false;
  #closed = false;
  #abort = new AbortController();
  #api;
  #store;

  /**
   * @param {Api} api
   * @param {Store} store
   * @param {string} id
   */
  constructor(api, store, id) {
    super();
    this.#api = api;
    this.#store = store;
    this.id = id;
  }

  /** The newest turn. */
  get last() {
    return this.turns.at(-1) ?? null;
  }

  /** Whether an answer is under way, here or elsewhere. */
  get answering() {
    return this.busy !== null || this.last?.state === "running";
  }

  /** Ask the server what was said. An answer that another tab is told is looked at until it is over. */
  async load() {
    clearTimeout(this.#pollTimer);
    try {
      const { turn, messages } = await this.#api.history(this.id);
      if (this.busy || this.#closed) return;
      this.#number = turn;
      this.turns = turnsOf(messages, this.turns);
      this.failure = null;
      this.loaded = true;
      if (this.last?.state === "running") this.#loadIn(POLL_MS);
      else if (!this.#settled && !this.refused) this.#findUnsent();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (this.busy || this.#closed) return;
      this.loaded ||= error.status === 403; // this role may talk, but not see what was said before
      this.failure = error.status === 403 ? null : error;
      if (error.passes || error.status === 0) this.#loadIn(RECOVER_MS);
    }
    this.#changed();
  }

  /** @param {string} text */
  send(text) {
    return this.ask({ kind: "send", text });
  }

  /** @param {Ask} ask */
  async ask(ask) {
    if (this.busy) return;
    this.#forgetTimers();
    const before = this.turns;
    const after = asked(before, ask);
    const turn = after?.at(-1);
    if (!after || !turn) return;
    this.#settled = true;
    const said = turn.answer;
    const undo = () => {
      turn.answer = said;
      turn.state = "interrupted"; // that of a turn that was there before, and goes on
      this.turns = before;
    };
    this.#keep(ask);
    this.turns = after;
    turn.state = "waiting";
    this.busy = turn;
    this.position = 0;
    this.refused = null;
    this.events = [];
    this.#abort = new AbortController();
    this.#changed();
    try {
      const done = await this.#listen(ask, turn);
      if (turn.answer === said && done.finish_reason === "cancelled") {
        undo();
        this.#giveBack(ask);
      } else if (done.usage?.completion_tokens === 0 && done.usage.prompt_tokens === 0 && turn.answer !== said) {
        const detail = turn.answer;
        undo();
        this.dispatchEvent(new CustomEvent("said", { detail }));
      } else {
        this.#finished(turn, done);
      }
      this.#store.setUnsent(this.id, null);
      this.#tries = 0;
      this.busy = null;
    } catch (error) {
      this.busy = null;
      if (this.#closed) return;
      const failure = error instanceof ApiError ? error : new ApiError(0, "unreachable", String(error));
      if (turn.answer !== said && (failure.code === "unreachable" || failure.code === STOPPED)) {
        turn.state = "interrupted"; // the server keeps it as that, too
        this.#loadIn(POLL_MS / 2);
      } else {
        undo();
        if (failure.code === STOPPED) this.#giveBack(ask);
        else if (failure.code !== CLEARED) this.#refuse(ask, failure);
      }
    }
    this.#changed();
    if (!this.loaded) await this.load();
  }

  /** Stop the answer under way; what there is of it stays. */
  async stop() {
    const abort = this.#abort;
    try {
      await this.#api.stop(this.id);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (this.busy) abort.abort(new ApiError(0, STOPPED, "")); // hanging up stops it, too
    }
    if (this.last?.state === "running") await this.load();
  }

  /** Ask again what was refused. */
  retry() {
    if (this.refused) void this.ask(this.refused.ask);
  }

  /** Do not ask again. @returns {string} the message that was to be sent */
  giveUp() {
    const ask = this.refused?.ask;
    clearTimeout(this.#retryTimer);
    this.refused = null;
    this.#tries = 0;
    this.#store.setUnsent(this.id, null);
    this.#changed();
    return ask && "text" in ask ? ask.text : "";
  }

  /** @param {string} id a message id */
  async delete(id) {
    await this.#api.deleteMessage(this.id, id);
    this.#store.setEdit(this.id, id, null);
    await this.load();
  }

  /** Forget everything that was said. */
  async clear() {
    this.#abort.abort(new ApiError(0, CLEARED, ""));
    await this.#api.clear(this.id);
    for (const { id } of this.turns) if (id) this.#store.setEdit(this.id, id, null);
    this.giveUp();
    await this.load();
  }

  /** This tab is not interested any more. */
  close() {
    this.#closed = true;
    this.#forgetTimers();
    this.#abort.abort();
  }

  /**
   * Ask, and hear the answer out.
   * @param {Ask} ask
   * @param {Turn} turn
   * @returns {Promise<any>} what `done` says
   */
  async #listen(ask, turn) {
    const began = performance.now();
    const { events, devTool } = await this.#api.chat(this.#body(ask), this.#abort.signal);
    this.devTool = devTool;
    let done = null;
    try {
      // to the very end, after `done` too: hanging up would cost the connection
      for await (const { event, data } of events) {
        this.#record(event, data, began);
        if (event === "delta") this.#grow(turn, data.text);
        else if (event === "queued") this.#wait(data.position);
        else if (event === "start") this.#wait(0, turn, data.message_id);
        else if (event === "done") done = data;
        else if (event === "error") {
          if (data.commit) await this.#commit(data.commit);
          throw errorOf(0, data.error);
        }
      }
    } catch (error) {
      const reason = this.#abort.signal.reason;
      if (!done) throw error instanceof ApiError ? error : reason instanceof ApiError ? reason : unreachable();
    }
    if (!done) throw unreachable();
    return done;
  }

  /** @param {Ask} ask */
  #body(ask) {
    const system = this.#store.system(this.id);
    return {
      conversation: this.id,
      ...fieldsOf(ask),
      ...(this.#number === null ? {} : { if_turn: this.#number }),
      ...(system ? { system } : {}),
    };
  }

  /**
   * @param {Turn} turn
   * @param {string} text
   */
  #grow(turn, text) {
    turn.answer += text;
    if (turn.state !== "writing") {
      turn.state = "writing";
      this.#store.setUnsent(this.id, null); // from here on the server keeps it, come what may
      this.#store.touch(this.id, ""); // a title comes with the end: what was typed may have been a pass phrase
      this.#changed();
    }
    this.dispatchEvent(new Event("text"));
  }

  /**
   * @param {number} position
   * @param {Turn} [turn]
   * @param {string} [id]
   */
  #wait(position, turn, id) {
    this.position = position;
    if (turn && id) turn.id = id;
    this.#changed();
  }

  /**
   * @param {Turn} turn
   * @param {any} done
   */
  #finished(turn, done) {
    turn.id = done.message_id;
    turn.state = done.finish_reason === "cancelled" ? "interrupted" : "complete";
    turn.finish = done.finish_reason;
    turn.usage = done.usage;
    turn.timing = done.timing;
    turn.like = null;
    this.#number = done.turn ?? null;
    this.#store.touch(this.id, turn.user);
    if (done.commit) void this.#commit(done.commit);
    if (done.dropped_turns) {
      this.dispatchEvent(new Event("dropped"));
      void this.load();
    }
    if (done.stored === false) this.dispatchEvent(new Event("unkept"));
  }

  /**
   * Where the history is in a cookie, the answer joins it with this request; without it, with the next one.
   * @param {string} commit
   */
  async #commit(commit) {
    await this.#api.commit(commit).catch(() => {});
  }

  /**
   * @param {Ask} ask
   * @param {ApiError} error
   */
  #refuse(ask, error) {
    this.refused = { ask, error, at: null };
    this.#keep(ask);
    if (error.retryAfter !== null && this.#tries < AUTOMATIC_TRIES) {
      this.#tries += 1;
      this.refused.at = Date.now() + error.retryAfter * 1000;
      this.#retryTimer = setTimeout(() => this.retry(), error.retryAfter * 1000);
    }
    if (error.status === 409 || error.status === 404) this.#loadIn(0); // it changed elsewhere: show how
  }

  /** @param {Ask} ask whose message is not to be lost, whatever happens to the page */
  #keep(ask) {
    if (!("text" in ask)) return;
    const edit = ask.kind === "edit" ? { edit: ask.id } : {};
    this.#store.setUnsent(this.id, { text: ask.text, ...edit, after: this.last?.id ?? null });
  }

  /** @param {Ask} ask that was stopped before its answer began */
  #giveBack(ask) {
    if ("text" in ask) this.dispatchEvent(new CustomEvent("returned", { detail: ask.text }));
    this.#store.setUnsent(this.id, null);
  }

  /** A message of an earlier visit that was not answered. Whether it was is known when no answer is under way. */
  #findUnsent() {
    this.#settled = true;
    const unsent = this.#store.unsent(this.id);
    if (!unsent) return;
    if (this.last?.user === unsent.text && this.last.id !== unsent.after) {
      this.#store.setUnsent(this.id, null);
      return;
    }
    const { text, edit } = unsent;
    this.refused = { ask: edit ? { kind: "edit", text, id: edit } : { kind: "send", text }, error: null, at: null };
  }

  /**
   * @param {string} event
   * @param {any} data
   * @param {number} began
   */
  #record(event, data, began) {
    this.events.push({ event, data, at: (performance.now() - began) / 1000 });
    if (this.events.length > EVENTS_KEPT) this.events.shift();
    this.dispatchEvent(new Event("event"));
  }

  /** @param {number} milliseconds */
  #loadIn(milliseconds) {
    clearTimeout(this.#pollTimer);
    this.#pollTimer = setTimeout(() => this.load(), milliseconds);
  }

  #forgetTimers() {
    clearTimeout(this.#pollTimer);
    clearTimeout(this.#retryTimer);
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

function unreachable() {
  return new ApiError(0, "unreachable", "The connection broke.");
}
