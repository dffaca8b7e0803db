// Delivery of a message: it is retried, or offered to the user again, until the history contains its answer.

import { hasAnswer } from "./turns.js";

/** @typedef {import("./api.js").ApiError} ApiError */
/** @typedef {import("./store.js").Store} Store */
/** @typedef {import("./turns.js").Turn} Turn */
/** @typedef {import("./turns.js").TurnRequest} TurnRequest */

/**
 * @typedef {object} Refused a request without an answer
 * @property {TurnRequest} request
 * @property {ApiError | null} error null: the page was closed before the answer began
 * @property {number | null} at time of the automatic retry, in milliseconds since 1970; null: no retry is scheduled
 */

/**
 * @typedef {object} Pending a request of which the history may or may not contain the answer
 * @property {TurnRequest} request
 * @property {ApiError | null} error the error that ended the response; null: the page was closed
 * @property {string | null} after message id of the newest earlier answer
 * @property {string | null} id message id of the answer, if it began
 * @property {() => void} undo restores the turns as they were before the request
 */

/**
 * @typedef {object} DeliveryHandlers
 * @property {(request: TurnRequest) => void} retry sends the request again
 * @property {(text: string) => void} restore puts a message without an answer back into the message box
 * @property {() => void} reload loads the history
 */

/** Code of the error that ends an answer which the user stopped. */
export const STOPPED = "stopped";

/** Milliseconds between attempts to reach a server that is unreachable. */
export const RECOVER_MS = 2000;

/** Maximum number of automatic retries of a refused message. */
const MAX_RETRIES = 20;

/** Maximum number of retries while a server lacks the last answer: another worker may have it. */
const MAX_ELSEWHERE_RETRIES = 2;

export class Delivery {
  /** @type {Refused | null} */
  refused = null;
  /** @type {Pending | null} */
  #pending = null;
  #retries = 0;
  #retryTimer = 0;
  /** Number of consecutive responses from servers that lacked the last answer. */
  #elsewhere = 0;
  #store;
  #conversation;
  #handlers;

  /**
   * @param {Store} store
   * @param {string} conversation
   * @param {DeliveryHandlers} handlers
   */
  constructor(store, conversation, handlers) {
    this.#store = store;
    this.#conversation = conversation;
    this.#handlers = handlers;
    const unsent = store.unsent(conversation);
    if (!unsent) return;
    const { text, edit, after = null, id = null } = unsent;
    const request = /** @type {TurnRequest} */ (edit ? { kind: "edit", text, id: edit } : { kind: "send", text });
    this.#pending = { request, error: null, after, id, undo: () => {} };
  }

  /** True while the history may or may not contain the answer to the last request. */
  get pending() {
    return this.#pending !== null;
  }

  /** True if the pending answer was stopped by the user. */
  get stopped() {
    return this.#pending?.error?.code === STOPPED;
  }

  /** True if the last answer is probably lost, so that the user is asked whether to continue without it. */
  get lost() {
    return this.#elsewhere > MAX_ELSEWHERE_RETRIES;
  }

  /**
   * Track `request`; its message survives a reload of the page from now on.
   * @param {TurnRequest} request
   * @param {string | null} after message id of the newest answer
   * @param {() => void} undo
   * @returns {boolean} true if this is a retry of the pending request
   */
  begin(request, after, undo) {
    const retry = this.#pending?.request === request;
    if (this.#pending && retry) this.#pending.undo = undo;
    else this.#track(request, after, undo);
    this.refused = null;
    return retry;
  }

  /**
   * @param {TurnRequest} request
   * @param {string | null} after
   * @param {() => void} undo
   */
  #track(request, after, undo) {
    const earlier = this.#pending?.request ?? this.refused?.request;
    if (earlier && earlier !== request) this.restore(earlier);
    this.#pending = { request, error: null, after, id: null, undo };
    if (!("text" in request)) return;
    const edit = request.kind === "edit" ? { edit: request.id } : {};
    this.#store.setUnsent(this.#conversation, { text: request.text, ...edit, after });
  }

  /** @param {string} id message id of the answer */
  setId(id) {
    if (this.#pending) this.#pending.id = id;
    const unsent = this.#store.unsent(this.#conversation);
    if (unsent) this.#store.setUnsent(this.#conversation, { ...unsent, id });
  }

  /** Note that the server has decided on the request: it was answered, or refused for good. */
  decided() {
    this.#pending = null;
  }

  /** Reset the counters of failures after an answer. */
  resetRetries() {
    this.#retries = 0;
    this.#elsewhere = 0;
  }

  /** @param {ApiError} error the error that ended the response */
  failed(error) {
    if (this.#pending) this.#pending.error = error;
  }

  /**
   * Offer a request again, and schedule a retry if the error is temporary.
   * @param {TurnRequest} request
   * @param {ApiError | null} error
   */
  refuse(request, error) {
    this.refused = { request, error, at: null };
    if (!error) return;
    const elsewhere = error.code === "answer_elsewhere";
    if (elsewhere) this.#elsewhere += 1;
    const restarting = error.code === "unreachable" && this.#retries > 0;
    const ms = error.temporary ? Number(error.retryAfter) * 1000 : restarting ? RECOVER_MS : null;
    if (ms !== null && (elsewhere ? !this.lost : this.#retries < MAX_RETRIES)) {
      this.#retries += 1;
      this.refused.at = Date.now() + ms;
      this.#retryIn(ms);
    } else if (error.status === 409 || error.status === 404) {
      this.#handlers.reload(); // another tab changed the conversation: show the change
    }
  }

  /** Send a refused request again. */
  retry() {
    if (this.refused) this.#handlers.retry(this.refused.request);
  }

  /** Retry a message that was refused because the conversation changed: without cookies, it has no turn number. */
  retryWithoutTurnNumber() {
    if (this.refused?.error?.code === "conversation_changed") this.#retryIn(0);
  }

  /** @param {number} ms */
  #retryIn(ms) {
    this.#retryTimer = setTimeout(() => this.retry(), ms);
  }

  cancelRetry() {
    clearTimeout(this.#retryTimer);
  }

  /** Drop the request. @returns {string} the text of the refused message */
  withdraw() {
    const request = this.refused?.request;
    this.#dismiss();
    this.#retries = 0;
    this.#store.setUnsent(this.#conversation, null);
    return request && "text" in request ? request.text : "";
  }

  #dismiss() {
    this.cancelRetry();
    this.refused = null;
    this.#pending = null;
  }

  /** Put the message of a request without an answer back into the message box. @param {TurnRequest} request */
  restore(request) {
    if ("text" in request) this.#handlers.restore(request.text);
    this.#clearUnsent(request);
  }

  /** Delete the stored copy of a message, unless another tab has sent a newer one. @param {TurnRequest} request */
  #clearUnsent(request) {
    const unsent = this.#store.unsent(this.#conversation);
    if ("text" in request && unsent?.text === request.text) this.#store.setUnsent(this.#conversation, null);
  }

  historyLoaded() {
    if (!this.refused) this.#elsewhere = 0;
  }

  /** @param {ApiError} error */
  historyFailed(error) {
    if (error.code === "answer_elsewhere") this.#elsewhere += 1;
    if (this.refused && this.lost) this.refused = { ...this.refused, error, at: null }; // show the error and the ways out
  }

  /** Hide the refusal while an answer runs in another tab: it is probably the answer to the pending request. */
  answerRunning() {
    if (!this.#pending) return;
    this.cancelRetry();
    this.refused = null;
  }

  /** Restore the turns as they were before the pending request. */
  undo() {
    if (!this.#pending) return;
    this.#pending.undo();
    this.#pending.undo = () => {};
  }

  /**
   * Offer the pending request again, unless `turns` contain its answer. Another tab may still deliver it.
   * @param {Turn[]} turns
   */
  resolve(turns) {
    if (!this.#pending) return;
    const { request, error } = this.#pending;
    if (hasAnswer(turns, this.#pending)) {
      this.#dismiss();
      this.#retries = 0;
      this.#clearUnsent(request);
    } else if (error?.code === STOPPED) {
      this.#pending = null;
      this.restore(request);
    } else if (!this.refused) {
      this.refuse(request, error);
    }
  }
}
