// The browser's storage: the list of conversations, drafts and settings. Answers are not stored.

/**
 * @typedef {object} Entry a conversation in the list
 * @property {string} id name of the conversation on the server
 * @property {string} title empty: no title yet
 * @property {number} updated milliseconds since 1970
 */

/**
 * @typedef {object} Settings
 * @property {"" | "light" | "dark"} [theme] empty: the system's theme
 * @property {"en" | "ja"} [locale]
 * @property {boolean} [stats] show times under each answer
 * @property {import("./api.js").ThinkingLevel} [thinking]
 * @property {boolean} [sidebar] false: hidden in wide windows
 */

/**
 * @typedef {object} Unsent a message without an answer in the history
 * @property {string} text
 * @property {string} [edit] message id of the answer whose message is replaced
 * @property {string | null} [after] message id of the newest answer when the message was sent
 * @property {string} [id] message id of the message's answer, once it has begun
 */

/**
 * @typedef {object} Commit
 * @property {string} token adds an answer to the cookie
 * @property {string} id message id of the answer
 */

/** @typedef {Pick<Storage, "getItem" | "setItem" | "removeItem">} Backend */

/** Maximum length of a title in characters. */
const MAX_TITLE_LENGTH = 60;

/** The default conversation. */
export const MAIN = "main";

/** Events: `change` (the list changed, in this tab or another one) and once `memory-only` (an item cannot be stored). */
export class Store extends EventTarget {
  /**
   * True if the server recognises this browser by its cookies, false if not, null while this is unknown.
   * @type {boolean | null}
   */
  cookiesWork = null;
  #backend;
  #scope;
  #current;
  /** @type {Map<string, string>} items that the backend did not accept */
  #memory = new Map();
  #memoryOnly = false;

  /**
   * @param {Backend | null} backend localStorage; null: the browser blocks it
   * @param {string} scope distinguishes pages of the same origin
   */
  constructor(backend, scope) {
    super();
    this.#backend = backend;
    this.#scope = scope;
    this.#current = String(this.#read("current", MAIN));
  }

  /** @returns {Entry[]} the newest first */
  get conversations() {
    const items = this.#read("conversations", []);
    const entries = Array.isArray(items) ? items.filter((item) => typeof item?.id === "string") : [];
    return entries.sort((a, b) => b.updated - a.updated);
  }

  /** Id of the conversation that this tab shows, and new tabs show first. */
  get current() {
    return this.#current;
  }

  set current(id) {
    this.#current = id;
    this.#write("current", id);
    this.#changed();
  }

  /** @param {string} id */
  entry(id) {
    return this.conversations.find((entry) => entry.id === id);
  }

  /** Return the id of a new conversation. It is added to the list with its first message. @returns {string} */
  newId() {
    const random = crypto.getRandomValues(new Uint8Array(9));
    return `c-${btoa(String.fromCharCode(...random)).replaceAll("+", "-").replaceAll("/", "_")}`;
  }

  /**
   * Move a conversation to the top of the list. If it has no title, use the first line of `message`.
   * @param {string} id
   * @param {string} message
   * @param {number} now
   */
  touch(id, message, now = Date.now()) {
    const title = this.entry(id)?.title || titleOf(message);
    this.#save([{ id, title, updated: now }, ...this.#others(id)]);
  }

  /**
   * @param {string} id
   * @param {string} title
   */
  rename(id, title) {
    const updated = this.entry(id)?.updated ?? Date.now();
    this.#save([{ id, title: titleOf(title), updated }, ...this.#others(id)]);
  }

  /**
   * Delete all items of a conversation.
   * @param {string} id
   */
  remove(id) {
    for (const kind of ["draft", "unsent", "commit", "system", "edits"]) this.#write(`${kind} ${id}`, null);
    this.#save(this.#others(id));
  }

  /**
   * Return the conversations whose titles contain all words of `text`.
   * @param {string} text
   * @returns {Entry[]}
   */
  search(text) {
    const words = text.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    return this.conversations.filter((entry) => {
      const title = entry.title.toLocaleLowerCase();
      return words.every((word) => title.includes(word));
    });
  }

  /** @param {string} id */
  draft(id) {
    return String(this.#read(`draft ${id}`, ""));
  }

  /**
   * @param {string} id
   * @param {string} text
   */
  setDraft(id, text) {
    this.#write(`draft ${id}`, text || null);
  }

  /**
   * Put a message without an answer in front of the current draft.
   * @param {string} id
   * @param {string} text
   */
  restoreDraft(id, text) {
    const draft = this.draft(id);
    this.setDraft(id, draft.trim() && draft !== text ? `${text}\n${draft}` : text);
  }

  /**
   * Return the new text of a message that is being edited.
   * @param {string} id
   * @param {string} messageId message id of the answer
   * @returns {string | null} null: the message is not being edited
   */
  edit(id, messageId) {
    const text = this.#edits(id)[messageId];
    return typeof text === "string" ? text : null;
  }

  /**
   * @param {string} id
   * @param {string} messageId
   * @param {string | null} text
   */
  setEdit(id, messageId, text) {
    const { [messageId]: _, ...others } = this.#edits(id);
    const edits = text === null ? others : { ...others, [messageId]: text };
    this.#write(`edits ${id}`, Object.keys(edits).length ? edits : null);
  }

  /**
   * @param {string} id
   * @returns {Record<string, unknown>} by message id
   */
  #edits(id) {
    const edits = this.#read(`edits ${id}`, {});
    return typeof edits === "object" ? edits : {};
  }

  /**
   * @param {string} id
   * @returns {Unsent | null}
   */
  unsent(id) {
    const unsent = this.#read(`unsent ${id}`, null);
    return typeof unsent?.text === "string" ? unsent : null;
  }

  /**
   * @param {string} id
   * @param {Unsent | null} unsent
   */
  setUnsent(id, unsent) {
    this.#write(`unsent ${id}`, unsent);
  }

  /**
   * @param {string} id
   * @returns {Commit | null}
   */
  commit(id) {
    const commit = this.#read(`commit ${id}`, null);
    return typeof commit?.token === "string" ? commit : null;
  }

  /**
   * @param {string} id
   * @param {Commit | null} commit
   */
  setCommit(id, commit) {
    this.#write(`commit ${id}`, commit);
  }

  /** @param {string} id */
  system(id) {
    return String(this.#read(`system ${id}`, ""));
  }

  /**
   * @param {string} id
   * @param {string} text
   */
  setSystem(id, text) {
    this.#write(`system ${id}`, text || null);
  }

  /** @returns {Settings} */
  get settings() {
    const settings = this.#read("settings", {});
    return typeof settings === "object" ? settings : {};
  }

  /** @param {Settings} changes */
  set(changes) {
    this.#write("settings", { ...this.settings, ...changes });
  }

  /**
   * Handle the `storage` event of another tab.
   * @param {string | null} key null: the storage was cleared
   * @returns {boolean} true if the list changed
   */
  onStorage(key) {
    if (key === null) this.#memory.clear();
    else this.#memory.delete(key);
    const changed = key === null || key === this.#key("conversations");
    if (changed) this.#changed();
    return changed;
  }

  /** @param {string} id */
  #others(id) {
    return this.conversations.filter((entry) => entry.id !== id);
  }

  /** @param {Entry[]} conversations */
  #save(conversations) {
    this.#write("conversations", conversations);
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }

  /** @param {string} name */
  #key(name) {
    return `aiochatstream ${this.#scope} ${name}`;
  }

  /**
   * @param {string} name
   * @param {any} fallback
   * @returns {any}
   */
  #read(name, fallback) {
    const key = this.#key(name);
    try {
      return JSON.parse(this.#memory.get(key) ?? this.#backend?.getItem(key) ?? "null") ?? fallback;
    } catch {
      return fallback; // the storage is blocked, or the item is invalid
    }
  }

  /**
   * @param {string} name
   * @param {unknown} value null removes the item
   */
  #write(name, value) {
    const key = this.#key(name);
    if (this.#persist(key, value)) {
      this.#memory.delete(key);
      return;
    }
    this.#memory.set(key, JSON.stringify(value));
    if (this.#memoryOnly) return;
    this.#memoryOnly = true;
    this.dispatchEvent(new Event("memory-only"));
  }

  /**
   * @param {string} key
   * @param {unknown} value
   * @returns {boolean} false: the storage is full or blocked
   */
  #persist(key, value) {
    if (!this.#backend) return false;
    try {
      if (value === null) this.#backend.removeItem(key);
      else this.#backend.setItem(key, JSON.stringify(value));
      return true;
    } catch {
      return false;
    }
  }
}

/** @param {string} message */
export function titleOf(message) {
  const line = (message.trim().split("\n", 1)[0] ?? "").trimEnd();
  const characters = [...line];
  return characters.length > MAX_TITLE_LENGTH ? `${characters.slice(0, MAX_TITLE_LENGTH - 1).join("")}…` : line;
}
