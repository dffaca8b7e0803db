// What this browser keeps: the list of conversations, drafts, and how the page looks. Nothing that was answered.

/**
 * @typedef {object} Entry one conversation of the list
 * @property {string} id its name on the server
 * @property {string} title empty: it has none yet
 * @property {number} updated milliseconds since 1970
 */

/**
 * @typedef {object} Settings
 * @property {"" | "light" | "dark"} [theme] empty: the system's
 * @property {"en" | "ja"} [locale]
 * @property {boolean} [stats] show times under each answer
 * @property {boolean} [sidebar] false: folded, where the window is wide
 */

/**
 * @typedef {object} Unsent a message that the server has not taken
 * @property {string} text
 * @property {string} [edit] message id of the answer whose message it replaces
 * @property {string | null} [after] message id of the newest answer when it was sent
 * @property {string} [id] message id of its answer, from the moment that this began
 */

/**
 * @typedef {object} Commit what seals an answer into the cookie
 * @property {string} token
 * @property {string} id message id of the answer
 */

/** @typedef {Pick<Storage, "getItem" | "setItem" | "removeItem">} Keeper */

const TITLE_LENGTH = 60;

/** The conversation that a client talks in which names none. */
export const MAIN = "main";

/**
 * The newest first. Tells `change` when the list changes, here or in another tab, and once `forgetful`, when something
 * can be kept in memory only.
 */
export class Store extends EventTarget {
  /**
   * True if the server knows this browser again, false if it does not (without cookies), null as long as that is open.
   * @type {boolean | null}
   */
  recognised = null;
  #keeper;
  #scope;
  #current;
  /** @type {Map<string, string>} what the keeper did not take */
  #memory = new Map();
  #forgetful = false;

  /**
   * @param {Keeper | null} keeper localStorage; null: the browser forbids it
   * @param {string} scope what keeps two pages of one origin apart
   */
  constructor(keeper, scope) {
    super();
    this.#keeper = keeper;
    this.#scope = scope;
    this.#current = String(this.#read("current", MAIN));
  }

  /** @returns {Entry[]} */
  get conversations() {
    const kept = this.#read("conversations", []);
    const entries = Array.isArray(kept) ? kept.filter((one) => typeof one?.id === "string") : [];
    return entries.sort((a, b) => b.updated - a.updated);
  }

  /** The one that this tab shows, and that the next tab will begin with; there is always one. */
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
    return this.conversations.find((one) => one.id === id);
  }

  /** @returns {string} the id of a new conversation, which joins the list when something is said in it */
  fresh() {
    const random = crypto.getRandomValues(new Uint8Array(9));
    return `c-${btoa(String.fromCharCode(...random)).replaceAll("+", "-").replaceAll("/", "_")}`;
  }

  /**
   * Something happened in a conversation: it moves to the top, and gets a title if it has none.
   * @param {string} id
   * @param {string} said
   * @param {number} now
   */
  touch(id, said, now = Date.now()) {
    const title = this.entry(id)?.title || titleOf(said);
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
   * Forget what is kept of a conversation.
   * @param {string} id
   */
  remove(id) {
    for (const kind of ["draft", "unsent", "commit", "system", "edits"]) this.#write(`${kind} ${id}`, null);
    this.#save(this.#others(id));
  }

  /**
   * @param {string} text
   * @returns {Entry[]} those whose titles have all words of `text`
   */
  search(text) {
    const words = text.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    return this.conversations.filter((one) => {
      const title = one.title.toLocaleLowerCase();
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
   * Put a message that was not answered before what has been written since.
   * @param {string} id
   * @param {string} text
   */
  giveBack(id, text) {
    const written = this.draft(id);
    this.setDraft(id, written.trim() && written !== text ? `${text}\n${written}` : text);
  }

  /**
   * What an earlier message is about to become.
   * @param {string} id
   * @param {string} messageId of its answer
   * @returns {string | null} null: it is not being edited
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
    const kept = this.#read(`edits ${id}`, {});
    return typeof kept === "object" ? kept : {};
  }

  /**
   * @param {string} id
   * @returns {Unsent | null}
   */
  unsent(id) {
    const kept = this.#read(`unsent ${id}`, null);
    return typeof kept?.text === "string" ? kept : null;
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
    const kept = this.#read(`commit ${id}`, null);
    return typeof kept?.token === "string" ? kept : null;
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
    const kept = this.#read("settings", {});
    return typeof kept === "object" ? kept : {};
  }

  /** @param {Settings} changes */
  set(changes) {
    this.#write("settings", { ...this.settings, ...changes });
  }

  /**
   * Another tab has written.
   * @param {string | null} key null: everything is gone
   * @returns {boolean} whether something was said, or the list changed
   */
  heard(key) {
    if (key === null) this.#memory.clear();
    else this.#memory.delete(key);
    const changed = key === null || key === this.#key("conversations");
    if (changed) this.#changed();
    return changed;
  }

  /** @param {string} id */
  #others(id) {
    return this.conversations.filter((one) => one.id !== id);
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
   * @param {any} otherwise
   * @returns {any}
   */
  #read(name, otherwise) {
    const key = this.#key(name);
    try {
      return JSON.parse(this.#memory.get(key) ?? this.#keeper?.getItem(key) ?? "null") ?? otherwise;
    } catch {
      return otherwise; // forbidden, or not what we wrote
    }
  }

  /**
   * @param {string} name
   * @param {unknown} value null removes it
   */
  #write(name, value) {
    const key = this.#key(name);
    if (this.#keep(key, value)) {
      this.#memory.delete(key);
      return;
    }
    this.#memory.set(key, JSON.stringify(value));
    if (this.#forgetful) return;
    this.#forgetful = true;
    this.dispatchEvent(new Event("forgetful"));
  }

  /**
   * @param {string} key
   * @param {unknown} value
   * @returns {boolean} whether the browser keeps it
   */
  #keep(key, value) {
    if (!this.#keeper) return false;
    try {
      if (value === null) this.#keeper.removeItem(key);
      else this.#keeper.setItem(key, JSON.stringify(value));
      return true;
    } catch {
      return false; // full or forbidden
    }
  }
}

/** @param {string} said */
export function titleOf(said) {
  const line = (said.trim().split("\n", 1)[0] ?? "").trimEnd();
  const characters = [...line];
  return characters.length > TITLE_LENGTH ? `${characters.slice(0, TITLE_LENGTH - 1).join("")}…` : line;
}

/** A keeper for tests. @returns {Keeper} */
export function memoryKeeper() {
  /** @type {Map<string, string>} */
  const kept = new Map();
  return {
    getItem: (key) => kept.get(key) ?? null,
    setItem: (key, value) => void kept.set(key, value),
    removeItem: (key) => void kept.delete(key),
  };
}
