// A conversation as this tab sees it: its turns, the answer that is being received, and the state of the history.

import { ApiError, errorOf } from "./api.js";
import { Commits } from "./commits.js";
import { Delivery, RECOVER_MS, STOPPED } from "./delivery.js";
import { drain } from "./stream.js";
import { endThought, fieldsOf, think, turnsOf, turnsWith } from "./turns.js";

/** @typedef {import("./api.js").Api} Api */
/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./stream.js").ServerEvent} ServerEvent */
/** @typedef {import("./turns.js").Turn} Turn */
/** @typedef {import("./turns.js").TurnRequest} TurnRequest */

/** Milliseconds between requests for the history while another tab receives the answer. */
const POLL_MS = 1000;

/** Milliseconds that the next message waits for an answer that was stopped. */
const STOP_TIMEOUT_MS = 3000;

/** Maximum number of recorded events. */
const MAX_EVENTS = 1000;

/** Code of the error that ends an answer when the conversation is cleared. */
const CLEARED = "cleared";

/**
 * Events: `change` (turns were added, removed or changed state), `text` (the newest answer or its thoughts grew), `event` (the server
 * sent an event), `restore` (a message without an answer; detail: its text), `server-message` (a message from the server
 * itself; detail: its text), `turns-dropped` (the oldest turns were dropped), `not-stored` (the newest turn is too long to
 * be stored), `stream-limit` (the request waits for other streams of this browser), `no-cookies` (the server does not
 * recognise this browser).
 */
export class Chat extends EventTarget {
  /** @type {Turn[]} */
  turns = [];
  /** @type {Turn | null} the turn whose answer this tab receives */
  busy = null;
  /** Place in the queue; 0: not queued. */
  position = 0;
  /** @type {ApiError | null} the reason why the history could not be loaded */
  failure = null;
  loaded = false;
  /** True if the role of the newest request may use the developer's panel. */
  devTool = false;
  /** @type {(ServerEvent & { at: number })[]} at: seconds since the request */
  events = [];
  /** @type {number | null} the conversation's turn number on the server */
  #turnNumber = null;
  /** Number of requests that were begun or ended: history from before the last of them is outdated. */
  #changes = 0;
  /** Number of requests for the history. */
  #loads = 0;
  #pollTimer = 0;
  #stopping = Promise.resolve();
  #closed = false;
  #abort = new AbortController();
  #api;
  #store;
  #commits;
  #delivery;
  #params;

  /**
   * @param {Api} api
   * @param {Store} store
   * @param {string} id
   * @param {() => Record<string, unknown>} params returns the generation parameters of the next request
   */
  constructor(api, store, id, params = () => ({})) {
    super();
    this.#api = api;
    this.#store = store;
    this.#params = params;
    this.#commits = new Commits(api, store, id);
    this.#delivery = new Delivery(store, id, {
      retry: (request) => void this.submit(request),
      restore: (detail) => this.dispatchEvent(new CustomEvent("restore", { detail })),
      reload: () => this.#loadIn(0),
    });
    this.id = id;
  }

  /** The newest turn. */
  get last() {
    return this.turns.at(-1) ?? null;
  }

  /** True while an answer is running, in this tab or another one. */
  get answering() {
    return this.busy !== null || this.last?.state === "running";
  }

  /** The request that the user can send again. */
  get refused() {
    return this.#delivery.refused;
  }

  /** True if the last answer is probably lost, so that the user is asked whether to continue without it. */
  get lost() {
    return this.#delivery.lost;
  }

  /**
   * Load the history. While another tab receives an answer, the history is polled. Only the newest request for it counts.
   * @param {boolean} [abandonLost] continue without a last answer that no server has
   */
  async load(abandonLost = false) {
    clearTimeout(this.#pollTimer);
    this.#loads += 1;
    const [changes, loads] = [this.#changes, this.#loads];
    const result = await this.#history(abandonLost);
    if (this.busy || this.#closed || loads !== this.#loads) return;
    if (changes !== this.#changes) {
      await this.load();
      return;
    }
    if (result instanceof ApiError) this.#loadFailed(result);
    else this.#applyHistory(result.turn, result.messages);
    this.#changed();
  }

  /** @param {boolean} abandonLost */
  async #history(abandonLost) {
    try {
      await this.#commit();
      return await this.#api.history(this.id, abandonLost);
    } catch (error) {
      if (error instanceof ApiError) return error;
      throw error;
    }
  }

  /** Continue without the last answer, and repeat the request that was refused because of it. */
  async abandonLost() {
    const request = this.refused?.request;
    await this.load(true);
    if (request && request === this.refused?.request && !this.failure) await this.submit(request, true);
  }

  /** @param {string} text */
  send(text) {
    return this.submit({ kind: "send", text });
  }

  /**
   * Send a request and receive its answer.
   * @param {TurnRequest} request
   * @param {boolean} [abandonLost] continue without a last answer that no server has
   */
  async submit(request, abandonLost = false) {
    if (this.busy) return;
    if (this.#delivery.pending && !this.refused && !("text" in request)) {
      await this.load(); // the request refers to the last answer, which must be known
      if (this.#delivery.pending || this.busy) return;
    }
    const before = this.turns;
    const after = turnsWith(before, request);
    const turn = after?.at(-1);
    if (!after || !turn) {
      this.withdraw(); // the turn that the request refers to no longer exists
      this.#delivery.restore(request);
      return;
    }
    this.#cancelTimers();
    const { answer: answerBefore, thinking: thinkingBefore } = turn;
    const undo = () => {
      turn.answer = answerBefore;
      turn.thinking = thinkingBefore;
      turn.state = "interrupted"; // the state of a turn that is being continued
      this.turns = before;
    };
    const retry = this.#delivery.begin(request, this.last?.id ?? null, undo);
    this.turns = after;
    turn.state = "waiting";
    this.busy = turn;
    this.#changes += 1;
    this.position = 0;
    this.events = [];
    this.#abort = new AbortController();
    this.#changed();
    try {
      const done = await this.#receive(request, turn, abandonLost);
      this.#delivery.decided();
      if (turn.answer === answerBefore && done.finish_reason === "cancelled") {
        undo();
        this.#delivery.restore(request);
      } else if (done.usage?.completion_tokens === 0 && done.usage.prompt_tokens === 0 && turn.answer !== answerBefore) {
        const detail = turn.answer;
        undo();
        this.#store.setUnsent(this.id, null);
        this.dispatchEvent(new CustomEvent("server-message", { detail }));
      } else {
        this.#finish(turn, done);
      }
      this.#delivery.resetRetries();
      this.#end();
      this.#changed();
      const unconfirmed = this.#store.cookiesWork === null && done.stored !== false;
      if (!this.loaded || done.dropped_turns || unconfirmed) await this.load();
    } catch (error) {
      this.#end();
      if (this.#closed) return;
      const failure = error instanceof ApiError ? error : new ApiError(0, "unreachable", String(error));
      const decided = failure.fromServer && !retry;
      if (failure.code !== CLEARED) this.#delivery.failed(failure);
      if (failure.fromServer) {
        undo();
        if (decided) this.#delivery.decided();
        this.#delivery.refuse(request, failure);
      } else if (failure.code === STOPPED || (turn.answer !== answerBefore && failure.code !== CLEARED)) {
        turn.state = "interrupted"; // the server stores the same state, if it stores the turn
      } else {
        undo();
        if (failure.code !== CLEARED) this.#delivery.refuse(request, failure);
      }
      this.#changed();
      const loadsLater = failure.code === STOPPED || failure.code === CLEARED; // stop() and clear() load the history
      if (!loadsLater && (!decided || !this.loaded)) await this.load();
    }
  }

  #end() {
    this.busy = null;
    this.#changes += 1;
  }

  /** Stop the running answer; the text so far remains. */
  stop() {
    this.#stopping = this.#stop();
    return this.#stopping;
  }

  /** Wait until the remainder of a stopped answer is known, or for STOP_TIMEOUT_MS. */
  async waitForStop() {
    await Promise.race([this.#stopping, new Promise((resolve) => setTimeout(resolve, STOP_TIMEOUT_MS))]);
  }

  async #stop() {
    if (this.busy) this.#abort.abort(new ApiError(0, STOPPED, "")); // first: this frees a connection for the request
    await this.#api.stop(this.id).catch(ignoreApiError);
    await this.load();
  }

  /** Send a refused request again. */
  retry() {
    this.#delivery.retry();
  }

  /** Drop the refused request. @returns {string} its message */
  withdraw() {
    const text = this.#delivery.withdraw();
    this.#changed();
    return text;
  }

  /** @param {string} id a message id */
  async delete(id) {
    await this.#api.deleteMessage(this.id, id);
    this.#store.setEdit(this.id, id, null);
    await this.load();
  }

  /** Clear the conversation. */
  async clear() {
    this.#abort.abort(new ApiError(0, CLEARED, ""));
    try {
      await this.#api.clear(this.id);
      for (const { id } of this.turns) if (id) this.#store.setEdit(this.id, id, null);
      this.#store.setCommit(this.id, null);
      this.#turnNumber = null;
      this.turns = [];
      this.withdraw();
    } finally {
      await this.load();
    }
  }

  /** Stop receiving and polling. */
  close() {
    this.#closed = true;
    this.#cancelTimers();
    this.#abort.abort();
  }

  /**
   * Send a request and read its stream to the end.
   * @param {TurnRequest} request
   * @param {Turn} turn
   * @param {boolean} abandonLost
   * @returns {Promise<any>} data of the `done` event
   */
  async #receive(request, turn, abandonLost) {
    const { signal } = this.#abort;
    const startTime = performance.now();
    await unlessAborted(signal, this.#commit());
    const body = { ...this.#body(request), ...(abandonLost ? { abandon_lost: true } : {}) };
    const onWait = () => this.dispatchEvent(new Event("stream-limit"));
    const { events, devTool } = await this.#api.chat(body, signal, onWait);
    this.devTool = devTool;
    try {
      for (let next = await events.next(); !next.done; next = await events.next()) {
        const { event, data } = next.value;
        this.#record(event, data, startTime);
        if (event === "delta") this.#grow(turn, data.text);
        else if (event === "thinking") this.#think(turn, data.text);
        else if (event === "queued") this.#setPosition(data.position);
        else if (event === "start") this.#setPosition(0, turn, data.message_id);
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
      throw error instanceof ApiError ? error : reason instanceof ApiError ? reason : connectionLost();
    } finally {
      endThought(turn);
      void drain(events);
    }
    throw connectionLost();
  }

  /** @param {TurnRequest} request */
  #body(request) {
    const system = this.#store.system(this.id);
    const params = this.#params();
    const noTurnNumber = this.#turnNumber === null || this.#store.cookiesWork === false;
    return {
      conversation: this.id,
      ...fieldsOf(request),
      ...(noTurnNumber ? {} : { if_turn: this.#turnNumber }),
      ...(system ? { system } : {}),
      ...(Object.keys(params).length ? { params } : {}),
    };
  }

  /**
   * @param {Turn} turn
   * @param {string} text
   */
  #grow(turn, text) {
    turn.answer += text;
    endThought(turn);
    this.#grown(turn);
  }

  /**
   * @param {Turn} turn
   * @param {string} text
   */
  #think(turn, text) {
    think(turn, text);
    this.#grown(turn);
  }

  /** @param {Turn} turn */
  #grown(turn) {
    if (turn.state !== "writing") {
      turn.state = "writing";
      this.#store.touch(this.id, ""); // #finish sets the title: the message may be a pass phrase
      this.#changed();
    }
    this.dispatchEvent(new Event("text"));
  }

  /**
   * @param {number} position
   * @param {Turn} [turn]
   * @param {string} [id]
   */
  #setPosition(position, turn, id) {
    this.position = position;
    if (turn && id) this.#setId(turn, id);
    this.#changed();
  }

  /**
   * @param {Turn} turn
   * @param {string} id message id of the answer
   */
  #setId(turn, id) {
    turn.id = id;
    this.#delivery.setId(id);
  }

  /**
   * @param {Turn} turn
   * @param {any} done
   */
  #finish(turn, done) {
    this.#setId(turn, done.message_id);
    turn.state = done.finish_reason === "cancelled" ? "interrupted" : "complete";
    turn.finish = done.finish_reason;
    turn.usage = done.usage;
    turn.timing = done.timing;
    turn.like = null;
    this.#turnNumber = done.turn ?? null;
    this.#store.touch(this.id, turn.user);
    if (done.commit) {
      this.#commits.add(done.commit, turn.id);
      void this.#commit();
    } else {
      this.#store.setUnsent(this.id, null);
    }
    if (done.dropped_turns) this.dispatchEvent(new Event("turns-dropped"));
    if (done.stored === false) this.dispatchEvent(new Event("not-stored"));
  }

  /** Send the stored commit token; on a failure, retry later. */
  async #commit() {
    if (!(await this.#commits.send())) this.#loadIn(RECOVER_MS);
  }

  /**
   * @param {number} turnNumber of the conversation
   * @param {import("./api.js").HistoryMessage[]} messages
   */
  #applyHistory(turnNumber, messages) {
    this.failure = null;
    this.loaded = true;
    this.#delivery.historyLoaded();
    if (turnNumber) this.#store.cookiesWork = true;
    else if (this.#turnNumber && this.#store.cookiesWork === null) this.#cookiesMissing();
    if (this.#store.cookiesWork === false && this.turns.length) {
      this.#delivery.resolve(this.turns); // the turns on the screen exist only there
      return;
    }
    this.#turnNumber = turnNumber;
    this.turns = turnsOf(messages, this.turns);
    if (this.last?.state === "running") {
      this.#loadIn(POLL_MS);
      this.#delivery.answerRunning();
      return;
    }
    const [first] = this.turns;
    if (first && this.#store.entry(this.id)?.title === "") this.#store.rename(this.id, first.user); // it was interrupted
    this.#delivery.resolve(this.turns);
  }

  /** @param {ApiError} error */
  #loadFailed(error) {
    const hidden = error.status === 403 && error.fromServer; // this role may chat, but not read the history
    if (hidden) this.loaded = this.#store.cookiesWork = true; // assumed: the history cannot show it
    this.failure = hidden ? null : error;
    this.#delivery.historyFailed(error);
    const retriable = error.temporary && !(error.code === "answer_elsewhere" && this.lost);
    if (retriable || error.code === "unreachable" || error.code === "foreign_response") this.#loadIn(RECOVER_MS);
    if (hidden || (this.#delivery.stopped && !this.last?.answer)) {
      this.#delivery.undo();
      this.#delivery.resolve(this.turns);
    }
  }

  /** Handle missing cookies: the history lacks turns that were answered here, so each request begins a new session. */
  #cookiesMissing() {
    this.#store.cookiesWork = false;
    this.dispatchEvent(new Event("no-cookies"));
    this.#delivery.retryWithoutTurnNumber();
  }

  /**
   * @param {string} event
   * @param {any} data
   * @param {number} startTime
   */
  #record(event, data, startTime) {
    this.events.push({ event, data, at: (performance.now() - startTime) / 1000 });
    if (this.events.length > MAX_EVENTS) this.events.shift();
    this.dispatchEvent(new Event("event"));
  }

  /** @param {number} ms */
  #loadIn(ms) {
    clearTimeout(this.#pollTimer);
    if (!this.#closed) this.#pollTimer = setTimeout(() => this.load(), ms);
  }

  #cancelTimers() {
    clearTimeout(this.#pollTimer);
    this.#delivery.cancelRetry();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

function connectionLost() {
  return new ApiError(0, "unreachable", "The connection was lost.");
}

/** @param {unknown} error */
function ignoreApiError(error) {
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
