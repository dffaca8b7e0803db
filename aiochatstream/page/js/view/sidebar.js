// The list of conversations.

import { t } from "../i18n.js";
import { byId, h, iconButton } from "./dom.js";

/** @typedef {import("../store.js").Store} Store */
/** @typedef {import("../store.js").Entry} Entry */

/**
 * @typedef {object} Actions
 * @property {(id: string) => void} open
 * @property {(entry: Entry) => void} remove
 * @property {(id: string) => boolean} answering true if this tab is receiving an answer of the conversation
 */

export class Sidebar {
  #list = byId("conversations");
  #search = byId("search", HTMLInputElement);
  #store;
  #actions;
  /** @type {string | null} */
  #renaming = null;

  /**
   * @param {Store} store
   * @param {Actions} actions
   */
  constructor(store, actions) {
    this.#store = store;
    this.#actions = actions;
    store.addEventListener("change", () => this.draw());
    this.#search.addEventListener("input", () => this.draw());
  }

  draw() {
    if (this.#renaming !== null && this.#list.querySelector("input")) return; // the user is renaming a conversation
    const focused = /** @type {HTMLElement | null} */ (document.activeElement?.closest("[data-conversation]"));
    const action = document.activeElement?.getAttribute("data-action");
    const entries = this.#store.search(this.#search.value);
    this.#list.replaceChildren(...entries.map((entry) => this.#item(entry)));
    if (!entries.length && this.#search.value) this.#list.append(h("li", { class: "nothing" }, [t("nothing_found")]));
    if (focused && action) this.#focus(focused.dataset.conversation ?? "", action);
  }

  /** @param {Entry} entry */
  #item(entry) {
    const { id } = entry;
    const title = entry.title || t("untitled");
    const current = id === this.#store.current;
    const answering = this.#actions.answering(id);
    return h("li", { class: "conversation", "data-conversation": id, ...(current ? { "data-current": true } : {}) }, [
      h(
        "button",
        {
          type: "button",
          class: "conversation-title",
          "data-action": "open",
          title,
          onclick: () => this.#actions.open(id),
          ...(current ? { "aria-current": "page" } : {}),
        },
        [h("span", { dir: "auto" }, [title]), answering && h("span", { class: "pulse", title: t("waiting") })],
      ),
      h("span", { class: "conversation-actions" }, [
        iconButton("edit", t("rename"), () => this.#rename(entry), { "data-action": "rename" }),
        iconButton("trash", t("remove"), () => this.#actions.remove(entry), { "data-action": "remove" }),
      ]),
    ]);
  }

  /** @param {Entry} entry */
  #rename({ id, title }) {
    const input = h("input", { type: "text", class: "rename", dir: "auto", "aria-label": t("rename"), maxlength: "60" });
    input.value = title;
    const finish = (/** @type {boolean} */ save) => {
      if (this.#renaming !== id) return;
      this.#renaming = null;
      input.remove();
      if (save && input.value.trim()) this.#store.rename(id, input.value);
      this.draw();
    };
    input.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key !== "Enter" && event.key !== "Escape" && event.key !== "Tab") return;
      event.preventDefault(); // otherwise the key would act on the button that receives the focus
      finish(event.key !== "Escape");
      this.#focus(id, "rename");
    });
    input.addEventListener("blur", () => finish(true));
    this.#renaming = id;
    const item = this.#list.querySelector(`[data-conversation="${id}"]`);
    item?.replaceChildren(input);
    input.focus();
    input.select();
  }

  /**
   * @param {string} id
   * @param {string} action
   */
  #focus(id, action) {
    const button = this.#list.querySelector(`[data-conversation="${id}"] [data-action=${action}]`);
    if (button instanceof HTMLElement) button.focus();
  }
}
