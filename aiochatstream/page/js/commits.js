// Where the history is in a cookie, an answer joins it by a token; without one, by the next request to the same process.

import { ApiError } from "./api.js";

/** @typedef {import("./api.js").Api} Api */
/** @typedef {import("./store.js").Store} Store */

/** The commit token of a conversation's newest answer. It is kept over a reload and a restart of the server. */
export class Commits {
  /** @type {Promise<boolean> | null} */
  #sending = null;
  #api;
  #store;
  #conversation;

  /**
   * @param {Api} api
   * @param {Store} store
   * @param {string} conversation
   */
  constructor(api, store, conversation) {
    this.#api = api;
    this.#store = store;
    this.#conversation = conversation;
  }

  /**
   * Keep a new token, in place of an older one.
   * @param {string} token
   * @param {string | null} id message id of the answer
   */
  add(token, id) {
    this.#store.setCommit(this.#conversation, { token, id: id ?? "" });
  }

  /**
   * Send the token, if there is one, until the server has taken or refused it.
   * @returns {Promise<boolean>} false: it must be sent again
   */
  send() {
    this.#sending ??= this.#send().finally(() => (this.#sending = null));
    return this.#sending;
  }

  async #send() {
    const conversation = this.#conversation;
    const commit = this.#store.commit(conversation);
    if (!commit) return true;
    try {
      await this.#api.commit(commit.token);
      if (this.#store.unsent(conversation)?.id === commit.id) this.#store.setUnsent(conversation, null);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (!error.certain || error.passes) return false;
    }
    if (this.#store.commit(conversation)?.token === commit.token) this.#store.setCommit(conversation, null);
    return true;
  }
}
