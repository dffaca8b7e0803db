// The panels at the sides: beside the conversation where the window is wide, over it where it is not.

import { byId } from "./dom.js";

const WIDE = { sidebar: "(min-width: 52rem)", panel: "(min-width: 76rem)" };

/** @type {Set<Drawer>} those that lie over the conversation */
const over = new Set();

export class Drawer {
  #panel;
  #opener;
  #wide;
  #onToggle;

  /**
   * @param {HTMLElement} panel
   * @param {HTMLElement} opener the button that opens and closes it
   * @param {keyof typeof WIDE} kind
   * @param {(open: boolean) => void} onToggle told when the user opens or closes it
   */
  constructor(panel, opener, kind, onToggle = () => {}) {
    this.#panel = panel;
    this.#opener = opener;
    this.#wide = matchMedia(WIDE[kind]);
    this.#onToggle = onToggle;
    opener.addEventListener("click", () => this.toggle(!this.open));
    panel.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#covers && !event.defaultPrevented) this.toggle(false);
    });
    this.#wide.addEventListener("change", () => this.#settle());
  }

  get open() {
    return !this.#panel.hidden;
  }

  get #covers() {
    return this.open && !this.#wide.matches;
  }

  get wide() {
    return this.#wide.matches;
  }

  /**
   * As the user does.
   * @param {boolean} open
   */
  toggle(open) {
    if (open === this.open) return;
    this.set(open);
    this.#onToggle(open);
    if (this.#covers) this.#focusFirst();
    else if (!open) this.#opener.focus();
  }

  /** @param {boolean} open */
  set(open) {
    this.#panel.hidden = !open;
    this.#settle();
  }

  #focusFirst() {
    const first = this.#panel.querySelector("button, input, select, textarea");
    if (first instanceof HTMLElement) first.focus();
  }

  /** Whatever a drawer covers is out of reach meanwhile. */
  #settle() {
    this.#opener.setAttribute("aria-expanded", String(this.open));
    if (this.#covers) over.add(this);
    else over.delete(this);
    byId("main").inert = over.size > 0;
    byId("scrim").hidden = over.size === 0;
  }
}

/** A click beside a drawer closes it. */
export function setUpDrawers() {
  byId("scrim").addEventListener("click", () => {
    for (const drawer of [...over]) drawer.toggle(false);
  });
}
