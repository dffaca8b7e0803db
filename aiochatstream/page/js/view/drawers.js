// The side panels: beside the conversation in wide windows, over it in narrow ones.

import { byId } from "./dom.js";

const WIDE = { sidebar: "(min-width: 52rem)", panel: "(min-width: 76rem)" };

/** @type {Set<Drawer>} the drawers that cover the conversation */
const overlays = new Set();

export class Drawer {
  #panel;
  #opener;
  #wide;
  #onToggle;

  /**
   * @param {HTMLElement} panel
   * @param {HTMLElement} opener the button that opens and closes it
   * @param {keyof typeof WIDE} kind
   * @param {(open: boolean) => void} onToggle called when the user opens or closes it
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
    this.#wide.addEventListener("change", () => this.#updateOverlays());
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
   * Open or close the drawer as the user does: focus moves, and `onToggle` is called.
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
    this.#updateOverlays();
  }

  #focusFirst() {
    const first = this.#panel.querySelector("button, input, select, textarea");
    if (first instanceof HTMLElement) first.focus();
  }

  /** Make the conversation inert while a drawer covers it. */
  #updateOverlays() {
    this.#opener.setAttribute("aria-expanded", String(this.open));
    if (this.#covers) overlays.add(this);
    else overlays.delete(this);
    byId("main").inert = overlays.size > 0;
    byId("scrim").hidden = overlays.size === 0;
  }
}

/** Close drawers on a click beside them. */
export function setUpDrawers() {
  byId("scrim").addEventListener("click", () => {
    for (const drawer of [...overlays]) drawer.toggle(false);
  });
}
