// The view of a conversation, and its scroll position.

import { localise, t } from "../i18n.js";
import { byId, h } from "./dom.js";
import { failure, refusal } from "./refusal.js";
import { TurnView } from "./turn.js";

/** @typedef {import("../chat.js").Chat} Chat */
/** @typedef {import("../turns.js").Turn} Turn */

/** Distance from the end in pixels within which scrolling down resumes following the answer. */
const NEAR_END = 80;

const UPWARD_KEYS = ["ArrowUp", "PageUp", "Home"];

/** Distance from the screen, in screen heights, within which turns are drawn. */
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
  /** @type {Set<TurnView>} the views near the screen; only these are updated */
  #near = new Set();
  #nearby;
  /** @type {Chat | null} */
  #chat = null;
  #following = true;
  /** The last known scroll position. */
  #top = 0;
  #frame = 0;
  /** @type {unknown} the refusal or failure that is shown below the turns; undefined: must be redrawn */
  #drawnState;

  /**
   * @param {import("./turn.js").Controls & { restore: (text: string) => void, stats: () => boolean,
   *   listed: (id: string) => boolean }} controls
   * @param {(text: string) => void} example called when the user selects an example
   */
  constructor(controls, example) {
    this.#controls = controls;
    this.#example = example;
    this.#scroll.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    this.#scroll.addEventListener("wheel", (event) => this.#onScrollInput(event.deltaY < 0 && !event.ctrlKey), { passive: true });
    this.#scroll.addEventListener("keydown", (event) => this.#onKey(event));
    this.#turns.addEventListener("click", (event) => this.#onClick(event));
    this.#latest.addEventListener("click", () => this.follow());
    const resized = new ResizeObserver(() => this.#keepEnd()); // runs after layout, so that it forces no additional layout
    for (const element of [this.#turns, this.#state, this.#scroll]) resized.observe(element);
    this.#nearby = new IntersectionObserver((entries) => this.#onIntersection(entries), {
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
    this.#drawnState = undefined;
    this.follow();
    this.#update();
  }

  /** Redraw after a change of language or settings. */
  redraw() {
    this.#drawnState = undefined;
    this.#update();
  }

  /** Scroll to the end, and follow the answer. */
  follow() {
    this.#follow(true);
    this.#drawLatest();
    this.#scrollToEnd();
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

  /** Draw new text once per frame: it arrives more often. */
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
    const newRequest = chat.busy !== null && !this.#views.has(chat.busy);
    this.inPlace(() => {
      this.#arrange(chat.turns);
      this.#drawAll(new Set([...this.#near, ...this.#newest()]));
      this.#drawState(chat);
      this.#empty.hidden = !chat.loaded || chat.turns.length > 0 || chat.refused !== null;
      byId("gone").hidden = !this.#controls.listed(chat.id);
    });
    if (newRequest) this.follow();
  }

  /**
   * Update the list to `turns`; existing views stay.
   * @param {Turn[]} turns
   */
  #arrange(turns) {
    if (turns.length < this.#views.size || turns.some((turn) => !this.#views.has(turn))) {
      const remaining = new Set(turns);
      for (const [turn, view] of this.#views) if (!remaining.has(turn)) this.#remove(turn, view);
    }
    let next = this.#turns.firstElementChild;
    for (const turn of turns) {
      const view = this.#views.get(turn) ?? this.#add(turn);
      if (view.element === next) next = next.nextElementSibling;
      else this.#turns.insertBefore(view.element, next);
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

  /** Return the newest turn, and while following, the turns near it. */
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
  #onIntersection(entries) {
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
   * Draw turns; an error in one does not affect the others.
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

  /** Draw the refusal or failure below the turns. @param {Chat} chat */
  #drawState(chat) {
    const state = chat.refused ?? chat.failure;
    if (state === this.#drawnState) return;
    if (chat.refused && this.#drawnState !== undefined) this.#follow(true);
    this.#drawnState = state;
    if (chat.refused) {
      this.#state.replaceChildren(refusal(chat, this.#controls.restore));
    } else if (chat.failure) {
      this.#state.replaceChildren(failure(chat));
    } else {
      this.#state.replaceChildren();
    }
  }

  #onScroll() {
    this.#updateFollowing();
    this.#drawLatest();
  }

  /**
   * Keep the place of a thought that the user unfolds, instead of following the end, unless it is still running.
   * @param {MouseEvent} event
   */
  #onClick({ target }) {
    const thought = target instanceof Element && target.closest("summary")?.closest("details:not([open], .running)");
    if (thought) this.#follow(false);
  }

  #drawLatest() {
    this.#latest.hidden = this.#following || !this.#empty.hidden;
  }

  /** @param {boolean} upwards true for input that scrolls up: the scroll events follow later, in small steps */
  #onScrollInput(upwards) {
    if (upwards) this.#follow(false);
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    const { key, target } = event;
    if (event.defaultPrevented || event.shiftKey || event.altKey || target instanceof HTMLTextAreaElement) return;
    this.#onScrollInput(UPWARD_KEYS.includes(key));
    if (key !== "Home" && key !== "End") return;
    event.preventDefault(); // browsers scroll gradually, and miss the target if turns change their heights
    if (key === "End") this.follow();
    else this.#scroll.scrollTop = 0;
  }

  /** Stop following after any scroll up, and follow after a scroll down to the end. */
  #updateFollowing() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroll;
    const rest = scrollHeight - scrollTop - clientHeight;
    if (scrollHeight <= clientHeight || (scrollTop > this.#top && rest < NEAR_END)) this.#follow(true);
    else if (scrollTop < this.#top && rest > 1) this.#follow(false); // at the end: the text is now shorter
    this.#top = scrollTop;
  }

  /** @param {boolean} following */
  #follow(following) {
    this.#following = following;
    this.#scroll.classList.toggle("following", following);
  }

  #keepEnd() {
    this.#updateFollowing();
    if (this.#following) this.#scrollToEnd();
    this.#drawLatest();
  }

  #scrollToEnd() {
    this.#scroll.scrollTop = this.#empty.hidden ? this.#scroll.scrollHeight : 0;
    this.#top = this.#scroll.scrollTop;
  }

  /**
   * Run a change of heights without moving the visible text. At the start of the conversation, the start stays visible.
   * @param {() => void} change
   */
  inPlace(change) {
    const anchor = this.#following || this.#scroll.scrollTop === 0 ? null : this.#anchor();
    const before = anchor?.getBoundingClientRect().top ?? 0;
    change();
    if (!anchor) this.#keepEnd();
    else if (anchor.isConnected) {
      this.#scroll.scrollTop += anchor.getBoundingClientRect().top - before;
      this.#top = this.#scroll.scrollTop;
    }
  }

  /** Return the message or block whose top is nearest to the upper edge of the screen. @returns {Element | null} */
  #anchor() {
    const { top } = this.#scroll.getBoundingClientRect();
    let nearest = null;
    let minDistance = Infinity;
    for (const { element } of this.#near) {
      for (const part of element.querySelectorAll(".bubble, .block")) {
        const distance = Math.abs(part.getBoundingClientRect().top - top);
        if (distance >= minDistance) continue;
        nearest = part;
        minDistance = distance;
      }
    }
    return nearest;
  }
}
