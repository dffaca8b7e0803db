// The selection of how much the model thinks, for models whose chat template has a switch for it.

import { t } from "../i18n.js";
import { byId, h } from "./dom.js";

/** @typedef {import("../api.js").Config} Config */
/** @typedef {import("../api.js").ThinkingLevel} ThinkingLevel */
/** @typedef {import("../store.js").Store} Store */

/** All levels, in the order of the selection. */
const LEVELS = /** @type {const} */ (["auto", "off", "low", "medium", "high"]);

export class ThinkingLevelBox {
  #box = byId("thinking");
  #select = byId("thinking-level", HTMLSelectElement);
  /** @type {ThinkingLevel[]} */
  #levels = [];
  #store;

  /** @param {Store} store */
  constructor(store) {
    this.#store = store;
    this.#select.addEventListener("change", () => {
      store.set({ thinking: /** @type {ThinkingLevel} */ (this.#select.value) });
    });
  }

  /** Offer the levels of the server's model. @param {Config} config */
  show({ thinking, thinking_levels: supported }) {
    const levels = supported?.length ? LEVELS.filter((level) => level === thinking || supported.includes(level)) : [];
    this.#levels = levels.length > 1 ? levels : [];
    this.#box.hidden = !this.#levels.length;
    const isSwitch = this.#levels.filter((level) => level !== "auto" && level !== "off").length === 1;
    this.#select.replaceChildren(
      ...this.#levels.map((level) => h("option", { value: level }, [t(label(level, isSwitch))])),
    );
    this.#select.value = this.#selected ?? thinking;
  }

  /** The level that the user has selected; undefined if it is not on offer. */
  get #selected() {
    const { thinking } = this.#store.settings;
    return this.#levels.find((level) => level === thinking);
  }

  /** Generation parameters of the next request: none until the user selects a level. */
  get params() {
    const thinking = this.#selected;
    return thinking ? { thinking } : {};
  }
}

/**
 * @param {ThinkingLevel} level
 * @param {boolean} isSwitch true if `level` is the only one besides "auto" and "off"
 */
function label(level, isSwitch) {
  return isSwitch && level !== "auto" && level !== "off" ? "thinking_on" : /** @type {const} */ (`thinking_${level}`);
}
