// Commit tokens. If the history is stored in the cookie, a request with the token adds the answer to it.

import { ApiError } from "./api.js";

/** @typedef {import("./api.js").Api} Api */
/** @typedef {import("./store.js").Store} Store */

/** The commit token of a conversation's newest answer. It survives a reload of the page and a restart of the server. */
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
   * Store a token in place of the previous one.
   * @param {string} token
   * @param {string | null} id message id of the answer
   */
  add(token, id) {
    this.#store.setCommit(this.#conversation, { token, id: id ?? "" });
  }

  /**
   * Send the token, if there is one. It is deleted when the server has accepted or refused it.
   * @returns {Promise<boolean>} false: the request failed and must be repeated
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
      if (!error.fromServer || error.temporary) return false;
    }
    if (this.#store.commit(conversation)?.token === commit.token) this.#store.setCommit(conversation, null);
    return true;
  }
}
