// The conversation on the screen, and where it is scrolled to.

import { localised, t } from "../i18n.js";
import { byId, h } from "./dom.js";
import { failure, refusal } from "./refusal.js";
import { TurnView } from "./turn.js";

/** @typedef {import("../chat.js").Chat} Chat */
/** @typedef {import("../turns.js").Turn} Turn */

/** Pixels from the end within which one still follows what is being written. */
const NEAR = 80;

export class Thread {
  #turns = byId("turns");
  #scroll = byId("scroll");
  #state = byId("state");
  #empty = byId("empty");
  #latest = byId("latest");
  #controls;
  #example;
  /** @type {Map<Turn, TurnView>} */
  #views = new Map();
  /** @type {Chat | null} */
  #chat = null;
  #following = true;
  #frame = 0;
  /** @type {unknown} what is drawn below the turns; undefined: not known */
  #refused;

  /**
   * @param {import("./turn.js").Controls & { giveBack: (text: string) => void, stats: () => boolean,
   *   listed: (id: string) => boolean }} controls
   * @param {(text: string) => void} example what choosing an example does
   */
  constructor(controls, example) {
    this.#controls = controls;
    this.#example = example;
    this.#scroll.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#latest.addEventListener("click", () => this.follow());
    new ResizeObserver(() => this.#stay()).observe(this.#turns); // after layout, so that it costs no further one
  }

  /** @param {Chat} chat */
  show(chat) {
    if (this.#chat !== chat) {
      this.#chat?.removeEventListener("change", this.#onChange);
      this.#chat?.removeEventListener("text", this.#onText);
      this.#chat = chat;
      chat.addEventListener("change", this.#onChange);
      chat.addEventListener("text", this.#onText);
    }
    this.redraw();
  }

  /** Everything anew: another conversation, or another language. */
  redraw() {
    this.#views.clear();
    this.#turns.replaceChildren();
    this.#refused = undefined;
    this.#update();
    this.follow();
  }

  /** Go to the end, and stay there. */
  follow() {
    this.#following = true;
    this.#latest.hidden = true;
    this.#stay();
  }

  /** @param {import("../api.js").Config} config */
  welcome(config) {
    byId("welcome").textContent = localised(config.welcome) ?? t("welcome");
    const examples = localised(config.examples) ?? /** @type {any} */ (t("examples"));
    byId("examples").replaceChildren(
      .../** @type {string[]} */ (examples).map((text) =>
        h("li", {}, [h("button", { type: "button", class: "example", onclick: () => this.#example(text) }, [text])]),
      ),
    );
  }

  #onChange = () => this.#update();

  /** Text comes faster than the screen is drawn. */
  #onText = () => {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      const last = this.#chat?.last;
      if (last) this.#views.get(last)?.grow();
    });
  };

  #update() {
    const chat = this.#chat;
    if (!chat) return;
    const asked = chat.last !== null && !this.#views.has(chat.last);
    for (const [turn, view] of this.#views) {
      if (chat.turns.includes(turn)) continue;
      view.element.remove();
      this.#views.delete(turn);
    }
    for (const [index, turn] of chat.turns.entries()) {
      const view = this.#viewOf(turn);
      if (this.#turns.children[index] !== view.element) this.#turns.insertBefore(view.element, this.#turns.children[index] ?? null);
      view.update({
        last: turn === chat.last,
        answering: chat.answering,
        position: turn === chat.busy ? chat.position : 0,
        stats: this.#controls.stats(),
      });
    }
    this.#drawState(chat);
    this.#empty.hidden = !chat.loaded || chat.turns.length > 0 || chat.refused !== null;
    byId("gone").hidden = !this.#controls.listed(chat.id);
    if (asked) this.follow();
    else this.#stay();
  }

  /** @param {Chat} chat what stands below the turns */
  #drawState(chat) {
    const shown = chat.refused ?? chat.failure;
    if (shown === this.#refused) return;
    this.#refused = shown;
    if (chat.refused) {
      this.#state.replaceChildren(refusal(chat, this.#controls.giveBack));
      this.#following = true;
    } else if (chat.failure) {
      this.#state.replaceChildren(failure(chat));
    } else {
      this.#state.replaceChildren();
    }
  }

  /** @param {Turn} turn */
  #viewOf(turn) {
    let view = this.#views.get(turn);
    if (!view) {
      view = new TurnView(turn, this.#controls);
      this.#views.set(turn, view);
    }
    return view;
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroll;
    this.#following = scrollHeight - scrollTop - clientHeight < NEAR;
    this.#latest.hidden = this.#following || !this.#empty.hidden;
  }

  #stay() {
    if (this.#following) this.#scroll.scrollTop = this.#empty.hidden ? this.#scroll.scrollHeight : 0;
  }
}
