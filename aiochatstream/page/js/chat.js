// One conversation as this tab sees it: what was said, what is being answered, and what the server has not taken.

import { ApiError, errorOf } from "./api.js";
import { Commits } from "./commits.js";
import { asked, fieldsOf, hasAnswer, turnsOf } from "./turns.js";

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

/**
 * @typedef {object} Pending what was asked, as long as it is not known whether the history has it
 * @property {Ask} ask
 * @property {ApiError | null} error how it ended here; null: the page was left
 * @property {string | null} after message id of the newest answer before it
 * @property {string | null} id message id of its answer, if that began
 * @property {() => void} undo shows the conversation as it was before
 */

/** Milliseconds between two looks at an answer that another tab is told. */
const POLL_MS = 1000;

/** Milliseconds until a lost connection is tried again. */
const RECOVER_MS = 2000;

/** How often a refused message is sent again by itself. */
const AUTOMATIC_TRIES = 20;

/** Retries while a server does not have the last answer: another worker may have it. */
const ELSEWHERE_TRIES = 2;

/** Milliseconds that the next message waits for an answer that was stopped. */
const SETTLED_MS = 3000;

const EVENTS_KEPT = 1000;

/** Codes of an answer whose connection was closed here. */
const STOPPED = "stopped";
const CLEARED = "cleared";

/**
 * Tells `change` (turns came, went, or changed state), `text` (the newest answer grew), `event` (the server said
 * something), `returned` (a message that was not answered; detail is its text), `said` (words of the server's own),
 * `dropped` (the oldest turns went, for want of room), `unkept` (the newest one has no room), `crowded` (the request waits
 * for other streams of this browser), `cookieless` (the server did not recognise this browser again).
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
  /** Responses in a row from servers that did not have the last answer. */
  #elsewhere = 0;
  /** @type {Pending | null} */
  #pending = null;
  #stopping = Promise.resolve();
  #closed = false;
  #abort = new AbortController();
  #api;
  #store;
  #commits;

  /**
   * @param {Api} api
   * @param {Store} store
   * @param {string} id
   */
  constructor(api, store, id) {
    super();
    this.#api = api;
    this.#store = store;
    this.#commits = new Commits(api, store, id);
    this.id = id;
    const unsent = store.unsent(id);
    if (!unsent) return;
    const { text, edit, after = null, id: answer = null } = unsent;
    const ask = /** @type {Ask} */ (edit ? { kind: "edit", text, id: edit } : { kind: "send", text });
    this.#pending = { ask, error: null, after, id: answer, undo: () => {} };
  }

  /** The newest turn. */
  get last() {
    return this.turns.at(-1) ?? null;
  }

  /** Whether an answer is under way, here or elsewhere. */
  get answering() {
    return this.busy !== null || this.last?.state === "running";
  }

  /** True if the last answer is most likely lost, so that going on without it is worth a question. */
  get lost() {
    return this.#elsewhere > ELSEWHERE_TRIES;
  }

  /**
   * Ask the server what was said. An answer that another tab is told is looked at until it is over.
   * @param {boolean} [abandonLost] go on without a last answer that no server has
   */
  async load(abandonLost = false) {
    clearTimeout(this.#pollTimer);
    try {
      await this.#commit();
      const { turn, messages } = await this.#api.history(this.id, abandonLost);
      if (this.busy || this.#closed) return;
      this.#show(turn, messages);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (this.busy || this.#closed) return;
      this.#notShown(error);
    }
    this.#changed();
  }

  /** Go on without the last answer, and ask again what was refused for its sake. */
  async abandonLost() {
    const ask = this.refused?.ask;
    await this.load(true);
    if (ask && ask === this.refused?.ask && !this.failure) await this.ask(ask, true);
  }

  /** @param {string} text */
  send(text) {
    return this.ask({ kind: "send", text });
  }

  /**
   * @param {Ask} ask
   * @param {boolean} [abandonLost] go on without a last answer that no server has
   */
  async ask(ask, abandonLost = false) {
    if (this.busy) return;
    if (this.#pending && !this.refused && !("text" in ask)) {
      await this.load(); // these two are about the last answer: which one that is must be known
      if (this.#pending || this.busy) return;
    }
    const before = this.turns;
    const after = asked(before, ask);
    const turn = after?.at(-1);
    if (!after || !turn) {
      this.giveUp(); // what it is about is gone
      this.#giveBack(ask);
      return;
    }
    this.#forgetTimers();
    const said = turn.answer;
    const undo = () => {
      turn.answer = said;
      turn.state = "interrupted"; // that of a turn that was there before, and goes on
      this.turns = before;
    };
    const retry = this.#pending?.ask === ask;
    this.#expect(ask, undo);
    this.turns = after;
    turn.state = "waiting";
    this.busy = turn;
    this.position = 0;
    this.refused = null;
    this.events = [];
    this.#abort = new AbortController();
    this.#changed();
    try {
      const done = await this.#listen(ask, turn, abandonLost);
      this.#pending = null;
      if (turn.answer === said && done.finish_reason === "cancelled") {
        undo();
        this.#giveBack(ask);
      } else if (done.usage?.completion_tokens === 0 && done.usage.prompt_tokens === 0 && turn.answer !== said) {
        const detail = turn.answer;
        undo();
        this.#store.setUnsent(this.id, null);
        this.dispatchEvent(new CustomEvent("said", { detail }));
      } else {
        this.#finished(turn, done);
      }
      this.#tries = 0;
      this.#elsewhere = 0;
      this.busy = null;
      this.#changed();
      if (!this.loaded || (this.#store.recognised === null && done.stored !== false)) await this.load();
    } catch (error) {
      this.busy = null;
      if (this.#closed) return;
      const failure = error instanceof ApiError ? error : new ApiError(0, "unreachable", String(error));
      const certain = failure.certain && !retry;
      if (this.#pending && failure.code !== CLEARED) this.#pending.error = failure;
      if (failure.certain) {
        undo();
        if (certain) this.#pending = null;
        this.#refuse(ask, failure);
      } else if (failure.code === STOPPED || (turn.answer !== said && failure.code !== CLEARED)) {
        turn.state = "interrupted"; // as the server keeps it, if it does
      } else {
        undo();
        if (failure.code !== CLEARED) this.#refuse(ask, failure);
      }
      this.#changed();
      const looksLater = failure.code === STOPPED || failure.code === CLEARED; // stop() and clear() do
      if (!looksLater && (!certain || !this.loaded)) await this.load();
    }
  }

  /** Stop the answer under way; what there is of it stays. */
  stop() {
    this.#stopping = this.#stop();
    return this.#stopping;
  }

  /** Wait until it is known what is left of an answer that was stopped, or for long enough. */
  async settled() {
    await Promise.race([this.#stopping, new Promise((resolve) => setTimeout(resolve, SETTLED_MS))]);
  }

  async #stop() {
    if (this.busy) this.#abort.abort(new ApiError(0, STOPPED, "")); // first: it frees a connection for the request
    await this.#api.stop(this.id).catch(ignoreRefusal);
    await this.load();
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
    this.#pending = null;
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
    try {
      await this.#api.clear(this.id);
      for (const { id } of this.turns) if (id) this.#store.setEdit(this.id, id, null);
      this.#store.setCommit(this.id, null);
      this.#number = null;
      this.turns = [];
      this.giveUp();
    } finally {
      await this.load();
    }
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
   * @param {boolean} abandonLost
   * @returns {Promise<any>} what `done` says
   */
  async #listen(ask, turn, abandonLost) {
    const { signal } = this.#abort;
    const began = performance.now();
    await unlessAborted(signal, this.#commit());
    const body = { ...this.#body(ask), ...(abandonLost ? { abandon_lost: true } : {}) };
    const { events, devTool } = await this.#api.chat(body, signal, () => this.dispatchEvent(new Event("crowded")));
    this.devTool = devTool;
    try {
      for (let next = await events.next(); !next.done; next = await events.next()) {
        const { event, data } = next.value;
        this.#record(event, data, began);
        if (event === "delta") this.#grow(turn, data.text);
        else if (event === "queued") this.#wait(data.position);
        else if (event === "start") this.#wait(0, turn, data.message_id);
        else if (event === "done") return data;
        else if (event === "error") {
          if (data.commit) {
            this.#commits.add(data.commit, turn.id);
            await this.#commit();
          }
          throw errorOf(0, data.error);
        }
      }
    } catch (error) {
      const { reason } = signal;
      throw error instanceof ApiError ? error : reason instanceof ApiError ? reason : unreachable();
    } finally {
      void drain(events);
    }
    throw unreachable();
  }

  /** @param {Ask} ask */
  #body(ask) {
    const system = this.#store.system(this.id);
    return {
      conversation: this.id,
      ...fieldsOf(ask),
      ...(this.#number === null || this.#store.recognised === false ? {} : { if_turn: this.#number }),
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
    if (turn && id) this.#name(turn, id);
    this.#changed();
  }

  /**
   * @param {Turn} turn
   * @param {string} id by which the history will have it
   */
  #name(turn, id) {
    turn.id = id;
    if (this.#pending) this.#pending.id = id;
    const unsent = this.#store.unsent(this.id);
    if (unsent) this.#store.setUnsent(this.id, { ...unsent, id });
  }

  /**
   * @param {Turn} turn
   * @param {any} done
   */
  #finished(turn, done) {
    this.#name(turn, done.message_id);
    turn.state = done.finish_reason === "cancelled" ? "interrupted" : "complete";
    turn.finish = done.finish_reason;
    turn.usage = done.usage;
    turn.timing = done.timing;
    turn.like = null;
    this.#number = done.turn ?? null;
    this.#store.touch(this.id, turn.user);
    if (done.commit) {
      this.#commits.add(done.commit, turn.id);
      void this.#commit();
    } else {
      this.#store.setUnsent(this.id, null);
    }
    if (done.dropped_turns) {
      this.dispatchEvent(new Event("dropped"));
      void this.load();
    }
    if (done.stored === false) this.dispatchEvent(new Event("unkept"));
  }

  /** Send the commit token that is kept, now and again until that succeeds. */
  async #commit() {
    if (!(await this.#commits.send())) this.#loadIn(RECOVER_MS);
  }

  /**
   * @param {number} number the conversation's turn number
   * @param {import("./api.js").HistoryMessage[]} messages
   */
  #show(number, messages) {
    this.failure = null;
    this.loaded = true;
    if (!this.refused) this.#elsewhere = 0;
    if (number) this.#store.recognised = true;
    else if (this.#number && this.#store.recognised === null) this.#notRecognised();
    if (this.#store.recognised === false && this.turns.length) {
      this.#settle(); // what is on the screen is nowhere else
      return;
    }
    this.#number = number;
    this.turns = turnsOf(messages, this.turns);
    if (this.last?.state !== "running") {
      const [first] = this.turns;
      if (first && this.#store.entry(this.id)?.title === "") this.#store.rename(this.id, first.user); // it broke off
      this.#settle();
      return;
    }
    this.#loadIn(POLL_MS);
    if (!this.#pending) return;
    clearTimeout(this.#retryTimer); // it is most likely what was asked here
    this.refused = null;
  }

  /** @param {ApiError} error why there is no history */
  #notShown(error) {
    const hidden = error.status === 403 && error.certain; // this role may talk, but not see what was said before
    if (hidden) this.loaded = this.#store.recognised = true; // as far as it can be known
    this.failure = hidden ? null : error;
    if (error.code === "answer_elsewhere") this.#elsewhere += 1;
    if (this.refused && this.lost) this.refused = { ...this.refused, error, at: null }; // say so, and what can be done
    const soon = error.passes && !(error.code === "answer_elsewhere" && this.lost);
    if (soon || error.code === "unreachable" || error.code === "not_ours") this.#loadIn(RECOVER_MS);
    if (hidden || (this.#pending?.error?.code === STOPPED && !this.last?.answer)) {
      this.#pending?.undo();
      if (this.#pending) this.#pending.undo = () => {};
      this.#settle();
    }
  }

  /** No turn that was answered here is known to the server: each request is a new session's. */
  #notRecognised() {
    this.#store.recognised = false;
    this.dispatchEvent(new Event("cookieless"));
    if (this.refused?.error?.code === "conversation_changed") this.#retryTimer = setTimeout(() => this.retry());
  }

  /** Offer again what was asked, unless the history has it; it may still come, from another tab. */
  #settle() {
    if (!this.#pending) return;
    const { ask, error } = this.#pending;
    if (hasAnswer(this.turns, this.#pending)) {
      this.#pending = null;
      clearTimeout(this.#retryTimer);
      this.refused = null;
      this.#tries = 0;
      this.#forget(ask);
    } else if (error?.code === STOPPED) {
      this.#pending = null;
      this.#giveBack(ask);
    } else if (!this.refused) {
      this.#refuse(ask, error);
    }
  }

  /**
   * @param {Ask} ask
   * @param {ApiError | null} error
   */
  #refuse(ask, error) {
    this.refused = { ask, error, at: null };
    if (!error) return;
    const elsewhere = error.code === "answer_elsewhere";
    if (elsewhere) this.#elsewhere += 1;
    const restarting = error.code === "unreachable" && this.#tries > 0;
    const ms = error.passes ? Number(error.retryAfter) * 1000 : restarting ? RECOVER_MS : null;
    if (ms !== null && (elsewhere ? !this.lost : this.#tries < AUTOMATIC_TRIES)) {
      this.#tries += 1;
      this.refused.at = Date.now() + ms;
      this.#retryTimer = setTimeout(() => this.retry(), ms);
    } else if (error.status === 409 || error.status === 404) {
      this.#loadIn(0); // it changed elsewhere: show how
    }
  }

  /**
   * From now on the message of `ask` is not lost, whatever happens to the page.
   * @param {Ask} ask
   * @param {() => void} undo
   */
  #expect(ask, undo) {
    if (this.#pending?.ask === ask) {
      this.#pending.undo = undo;
      return;
    }
    const earlier = this.#pending?.ask ?? this.refused?.ask;
    if (earlier && earlier !== ask) this.#giveBack(earlier);
    const after = this.last?.id ?? null;
    this.#pending = { ask, error: null, after, id: null, undo };
    if (!("text" in ask)) return;
    const edit = ask.kind === "edit" ? { edit: ask.id } : {};
    this.#store.setUnsent(this.id, { text: ask.text, ...edit, after });
  }

  /** @param {Ask} ask that was not answered */
  #giveBack(ask) {
    if ("text" in ask) this.dispatchEvent(new CustomEvent("returned", { detail: ask.text }));
    this.#forget(ask);
  }

  /** @param {Ask} ask that is done with; another tab may have sent something since */
  #forget(ask) {
    if ("text" in ask && this.#store.unsent(this.id)?.text === ask.text) this.#store.setUnsent(this.id, null);
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
    if (!this.#closed) this.#pollTimer = setTimeout(() => this.load(), milliseconds);
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

/** @param {unknown} error */
function ignoreRefusal(error) {
  if (!(error instanceof ApiError)) throw error;
}

/**
 * Wait for `task`. Raises the reason of `signal` if that is aborted first.
 * @param {AbortSignal} signal
 * @param {Promise<void>} task
 */
function unlessAborted(signal, task) {
  return new Promise((resolve, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    task.then(() => resolve(null), reject);
  });
}

/**
 * Read to the very end: hanging up would cost the connection.
 * @param {AsyncGenerator<ServerEvent, void, void>} events
 */
async function drain(events) {
  try {
    while (!(await events.next()).done);
  } catch {
    // all that matters has come
  }
}
