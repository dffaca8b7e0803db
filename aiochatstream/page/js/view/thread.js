// The conversation on the screen, and where it is scrolled to.

import { localise, t } from "../i18n.js";
import { byId, h } from "./dom.js";
import { failure, refusal } from "./refusal.js";
import { TurnView } from "./turn.js";

/** @typedef {import("../chat.js").Chat} Chat */
/** @typedef {import("../turns.js").Turn} Turn */

/** Pixels from the end within which one who scrolls down follows what is being written from there on. */
const NEAR_END = 80;

const UPWARDS = ["ArrowUp", "PageUp", "Home"];

/** Heights of the screen above and below it within which turns are drawn. */
const NEAR = 1;

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
  /** @type {WeakMap<Element, TurnView>} */
  #viewOf = new WeakMap();
  /** @type {Set<TurnView>} those near the screen: only they are kept up to date */
  #near = new Set();
  #nearby;
  /** @type {Chat | null} */
  #chat = null;
  #following = true;
  /** Where it was scrolled to when that was looked at last. */
  #top = 0;
  #frame = 0;
  /** @type {unknown} what is drawn below the turns; undefined: not known */
  #refused;

  /**
   * @param {import("./turn.js").Controls & { restore: (text: string) => void, stats: () => boolean,
   *   listed: (id: string) => boolean }} controls
   * @param {(text: string) => void} example what choosing an example does
   */
  constructor(controls, example) {
    this.#controls = controls;
    this.#example = example;
    this.#scroll.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#scroll.addEventListener("wheel", (event) => this.#stepped(event.deltaY < 0 && !event.ctrlKey), { passive: true });
    this.#scroll.addEventListener("keydown", (event) => this.#keyPressed(event));
    this.#latest.addEventListener("click", () => this.follow());
    const resized = new ResizeObserver(() => this.#stay()); // after layout, so that it costs no further one
    for (const element of [this.#turns, this.#state, this.#scroll]) resized.observe(element);
    this.#nearby = new IntersectionObserver((entries) => this.#neared(entries), {
      root: this.#scroll,
      rootMargin: `${NEAR * 100}% 0px`,
    });
    window.addEventListener("beforeprint", () => this.#drawAll(this.#views.values()));
  }

  /** @param {Chat} chat */
  show(chat) {
    if (this.#chat === chat) {
      this.redraw();
      return;
    }
    this.#chat?.removeEventListener("change", this.#onChange);
    this.#chat?.removeEventListener("text", this.#onText);
    this.#chat = chat;
    chat.addEventListener("change", this.#onChange);
    chat.addEventListener("text", this.#onText);
    this.#nearby.disconnect();
    this.#near.clear();
    this.#views.clear();
    this.#turns.replaceChildren();
    this.#refused = undefined;
    this.follow();
    this.#update();
  }

  /** Another language, other settings: what is on the screen changes in its place. */
  redraw() {
    this.#refused = undefined;
    this.#update();
  }

  /** Go to the end, and stay there. */
  follow() {
    this.#follow(true);
    this.#latest.hidden = true;
    this.#goToEnd();
  }

  /** @param {import("../api.js").Config} config */
  welcome(config) {
    byId("welcome").textContent = localise(config.welcome) ?? t("welcome");
    const examples = localise(config.examples) ?? /** @type {any} */ (t("examples"));
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
    const asked = chat.busy !== null && !this.#views.has(chat.busy);
    this.inPlace(() => {
      this.#arrange(chat.turns);
      this.#drawAll(new Set([...this.#near, ...this.#newest()]));
      this.#drawState(chat);
      this.#empty.hidden = !chat.loaded || chat.turns.length > 0 || chat.refused !== null;
      byId("gone").hidden = !this.#controls.listed(chat.id);
    });
    if (asked) this.follow();
  }

  /**
   * Make the list that of `turns`; those that are in it stay.
   * @param {Turn[]} turns
   */
  #arrange(turns) {
    if (turns.length < this.#views.size || turns.some((turn) => !this.#views.has(turn))) {
      const wanted = new Set(turns);
      for (const [turn, view] of this.#views) if (!wanted.has(turn)) this.#remove(turn, view);
    }
    let at = this.#turns.firstElementChild;
    for (const turn of turns) {
      const view = this.#views.get(turn) ?? this.#add(turn);
      if (view.element === at) at = at.nextElementSibling;
      else this.#turns.insertBefore(view.element, at);
    }
  }

  /** @param {Turn} turn */
  #add(turn) {
    const view = new TurnView(turn, this.#controls);
    this.#views.set(turn, view);
    this.#viewOf.set(view.element, view);
    this.#nearby.observe(view.element);
    return view;
  }

  /**
   * @param {Turn} turn
   * @param {TurnView} view
   */
  #remove(turn, view) {
    this.#nearby.unobserve(view.element);
    this.#near.delete(view);
    this.#views.delete(turn);
    view.element.remove();
  }

  /** The newest turn, and the others that one who follows sees with it. */
  #newest() {
    const newest = [];
    let room = this.#following ? (1 + NEAR) * window.innerHeight : 0;
    for (const turn of this.#chat?.turns.toReversed() ?? []) {
      const view = this.#views.get(turn);
      if (view) newest.push(view);
      room -= view?.height ?? 0;
      if (room <= 0) break;
    }
    return newest;
  }

  /** @param {IntersectionObserverEntry[]} entries */
  #neared(entries) {
    this.inPlace(() => {
      for (const { target, isIntersecting } of entries) {
        const view = this.#viewOf.get(target);
        if (!view || !target.isConnected) continue;
        if (!isIntersecting) this.#near.delete(view);
        else if (!this.#near.has(view)) {
          this.#near.add(view);
          this.#drawAll([view]);
        }
      }
    });
  }

  /**
   * Draw turns as they are now; one that fails leaves the others as they should be.
   * @param {Iterable<TurnView>} views
   */
  #drawAll(views) {
    const { last, busy, answering, position } = this.#chat ?? {};
    for (const view of views) {
      try {
        view.update({
          last: view.turn === last,
          answering: Boolean(answering),
          position: view.turn === busy ? (position ?? 0) : 0,
          stats: this.#controls.stats(),
        });
      } catch (error) {
        reportError(error);
      }
    }
  }

  /** @param {Chat} chat what stands below the turns */
  #drawState(chat) {
    const shown = chat.refused ?? chat.failure;
    if (shown === this.#refused) return;
    if (chat.refused && this.#refused !== undefined) this.#follow(true);
    this.#refused = shown;
    if (chat.refused) {
      this.#state.replaceChildren(refusal(chat, this.#controls.restore));
    } else if (chat.failure) {
      this.#state.replaceChildren(failure(chat));
    } else {
      this.#state.replaceChildren();
    }
  }

  #scrolled() {
    this.#look();
    this.#latest.hidden = this.#following || !this.#empty.hidden;
  }

  /** @param {boolean} upwards what scrolls up has begun: the scrolling itself comes later, and in small steps */
  #stepped(upwards) {
    if (upwards) this.#follow(false);
  }

  /** @param {KeyboardEvent} event */
  #keyPressed(event) {
    const { key, target } = event;
    if (event.defaultPrevented || event.shiftKey || event.altKey || target instanceof HTMLTextAreaElement) return;
    this.#stepped(UPWARDS.includes(key));
    if (key !== "Home" && key !== "End") return;
    event.preventDefault(); // browsers scroll there gradually, and miss it when turns on the way change their heights
    if (key === "End") this.follow();
    else this.#scroll.scrollTop = 0;
  }

  /** Any step up ends the following; a step down to the end begins it. */
  #look() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroll;
    const rest = scrollHeight - scrollTop - clientHeight;
    if (scrollHeight <= clientHeight || (scrollTop > this.#top && rest < NEAR_END)) this.#follow(true);
    else if (scrollTop < this.#top && rest > 1) this.#follow(false); // at the end: the text has become shorter
    this.#top = scrollTop;
  }

  /** @param {boolean} following */
  #follow(following) {
    this.#following = following;
    this.#scroll.classList.toggle("following", following);
  }

  #stay() {
    this.#look();
    if (this.#following) this.#goToEnd();
  }

  #goToEnd() {
    this.#scroll.scrollTop = this.#empty.hidden ? this.#scroll.scrollHeight : 0;
    this.#top = this.#scroll.scrollTop;
  }

  /**
   * Do what changes heights; what is read stays where it is on the screen. At the beginning, that is the beginning.
   * @param {() => void} change
   */
  inPlace(change) {
    const anchor = this.#following || this.#scroll.scrollTop === 0 ? null : this.#anchor();
    const before = anchor?.getBoundingClientRect().top ?? 0;
    change();
    if (!anchor) this.#stay();
    else if (anchor.isConnected) {
      this.#scroll.scrollTop += anchor.getBoundingClientRect().top - before;
      this.#top = this.#scroll.scrollTop;
    }
  }

  /** @returns {Element | null} the message or block that begins nearest to the upper edge of the screen */
  #anchor() {
    const { top } = this.#scroll.getBoundingClientRect();
    let nearest = null;
    let least = Infinity;
    for (const { element } of this.#near) {
      for (const part of element.querySelectorAll(".bubble, .block")) {
        const distance = Math.abs(part.getBoundingClientRect().top - top);
        if (distance >= least) continue;
        nearest = part;
        least = distance;
      }
    }
    return nearest;
  }
}
