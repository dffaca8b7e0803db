// One message and its answer. It begins as plain text; buttons and Markdown come with the first `update`.

import { announce } from "../announce.js";
import { Blocks } from "../blocks.js";
import { copyText } from "../clipboard.js";
import { currentLocale, t } from "../i18n.js";
import { avatar } from "./avatar.js";
import { feedbackForm } from "./feedback.js";
import { h, iconButton, textButton } from "./dom.js";

/** @typedef {import("../turns.js").Turn} Turn */

/**
 * @typedef {object} Surroundings what a turn needs to know besides itself
 * @property {boolean} last it is the newest
 * @property {boolean} answering an answer of the conversation is under way
 * @property {number} position place in the queue; 0: not in it
 * @property {boolean} stats show times
 */

/**
 * @typedef {object} Controls what its buttons do
 * @property {(api: string) => boolean} may whether the user's role may call this
 * @property {(id: string, text: string) => void} edit
 * @property {(id: string) => string | null} edited what its message is about to become; null: nothing else
 * @property {(id: string, text: string | null) => void} setEdited keeps that, until the edit is over
 * @property {() => void} regenerate
 * @property {() => void} goOn
 * @property {(turn: Turn) => void} remove
 * @property {(turn: Turn, like: boolean | null, comment: string | null) => Promise<void>} feedback
 */

/** Pixels of a turn and of a line of it, and characters of that line: for as long as it was not laid out. */
const TURN_HEIGHT = 150;
const LINE_HEIGHT = 28;
const LINE_LENGTH = 70;

export class TurnView {
  #controls;
  #blocks;
  #text = h("div", { class: "answer plain", dir: "auto", "data-role": "answer" });
  #waiting = h("div", { class: "waiting" });
  #note = h("div", { class: "note" });
  #stats = h("p", { class: "stats" });
  #actions = h("div", { class: "actions" });
  #bubble = h("div", { class: "bubble", dir: "auto", "data-role": "message" });
  #userActions = h("div", { class: "actions" });
  #reply = h("div", { class: "reply-body" }, [this.#text]);
  #furnished = false;
  #statsOpen = false;
  #editing = false;
  #drawn = "";
  #announced = "";
  #bubbleText = "";

  /**
   * @param {Turn} turn
   * @param {Controls} controls
   */
  constructor(turn, controls) {
    this.turn = turn;
    this.#controls = controls;
    this.#blocks = new Blocks(this.#text, announceBlock);
    this.element = h("li", { class: "turn" }, [
      h("h2", { class: "visually-hidden", "data-text": "you" }, [t("you")]),
      h("div", { class: "user" }, [this.#bubble]),
      h("h2", { class: "visually-hidden", "data-text": "assistant" }, [t("assistant")]),
      h("div", { class: "reply" }, [this.#reply]),
    ]);
    this.height = TURN_HEIGHT + LINE_HEIGHT * Math.ceil((turn.user.length + turn.answer.length) / LINE_LENGTH);
    this.element.style.containIntrinsicBlockSize = `auto ${this.height}px`;
    this.#text.textContent = turn.answer;
    this.#describe();
  }

  /** Add what is there only near the screen. */
  #furnish() {
    if (this.#furnished) return;
    this.#furnished = true;
    this.#text.replaceChildren();
    this.#text.classList.remove("plain");
    this.#text.removeAttribute("dir"); // each block has one
    this.#bubble.after(this.#userActions);
    this.#reply.before(avatar());
    this.#reply.append(this.#waiting, this.#note, this.#stats, this.#actions);
  }

  #describe() {
    const { turn } = this;
    this.element.dataset.state = turn.state;
    this.element.dataset.messageId = turn.id ?? "";
    if (this.#bubbleText === turn.user) return;
    this.#bubbleText = turn.user;
    this.#bubble.textContent = turn.user;
  }

  /** The answer grew. */
  grow() {
    this.#furnish();
    this.#blocks.show(this.turn.answer, !this.#underWay);
  }

  /** @param {Surroundings} around */
  update(around) {
    const { turn } = this;
    const { may } = this.#controls;
    this.#furnish();
    this.#describe();
    this.grow();
    this.#announce(around);
    const shown = [currentLocale(), may("set_feedback"), may("delete_message"), this.#statsOpen];
    const drawn = JSON.stringify([turn.state, turn.id, turn.finish, turn.like, turn.usage, around, ...shown]);
    if (drawn === this.#drawn) return; // what has the focus stays
    this.#drawn = drawn;
    this.#drawWaiting(around);
    this.#drawNote(around);
    this.#drawStats(around);
    this.#drawActions(around);
    const edited = turn.id && !around.answering ? this.#controls.edited(turn.id) : null;
    if (edited !== null && !this.#editing) this.#edit(edited);
  }

  /**
   * Say what has come of it; the answer itself is said block by block.
   * @param {Surroundings} around
   */
  #announce({ position }) {
    const { state } = this.turn;
    const ended = this.#announced && !this.#underWay && t(state === "complete" ? "answered" : "interrupted");
    const waits = state === "waiting" && (position ? t("queued", position) : t("waiting"));
    const text = ended || waits || this.#announced;
    if (text !== this.#announced) announce(text);
    this.#announced = text;
    this.#text.setAttribute("aria-busy", String(this.#underWay));
  }

  get #underWay() {
    return this.turn.state === "waiting" || this.turn.state === "writing" || this.turn.state === "running";
  }

  /** @param {Surroundings} around */
  #drawWaiting({ position }) {
    const { state, answer } = this.turn;
    const text = position ? t("queued", position) : state === "running" ? t("elsewhere") : "";
    const shown = state === "waiting" || state === "running";
    const dots = h("span", { class: "dots", "aria-hidden": "true" }, [h("i"), h("i"), h("i")]);
    this.#waiting.hidden = !shown;
    this.#waiting.replaceChildren(dots, h("span", { "data-role": "queue" }, [text]));
    this.element.classList.toggle("empty-answer", shown && !answer);
  }

  /** @param {Surroundings} around */
  #drawNote({ last, answering }) {
    const { state, finish } = this.turn;
    const interrupted = state === "interrupted";
    const cut = state === "complete" && finish === "length";
    this.#note.hidden = !interrupted && !cut;
    this.#note.replaceChildren(h("span", {}, [interrupted ? t("interrupted") : t("cut")]));
    if (interrupted && last && !answering) {
      this.#note.append(textButton(t("continue"), this.#controls.goOn, "quiet small", "forward"));
    }
  }

  /** @param {Surroundings} around */
  #drawStats({ stats }) {
    const { usage, timing } = this.turn;
    this.#stats.hidden = !(usage && timing && (stats || this.#statsOpen));
    if (!usage || !timing) return;
    const seconds = timing.total_s - timing.ttft_s;
    const rate = seconds > 0 && usage.completion_tokens > 1 ? (usage.completion_tokens - 1) / seconds : null;
    this.#stats.textContent = t("stats", {
      tokens: usage.completion_tokens,
      rate: rate === null ? null : rate.toFixed(1),
      first: timing.ttft_s.toFixed(2),
      cached: usage.cached_tokens,
    });
  }

  /** @param {Surroundings} around */
  #drawActions({ last, answering }) {
    const { turn } = this;
    const { may } = this.#controls;
    const copyMessage = iconButton("copy", t("copy"), () => copyText(turn.user, copyMessage));
    const editing = turn.id && !answering && iconButton("edit", t("edit"), () => this.#edit(turn.user).focus(), { "data-action": "edit" });
    this.#userActions.replaceChildren(...[copyMessage, editing].filter((one) => one instanceof Node));
    this.#actions.hidden = this.#underWay;
    if (this.#underWay) return;
    const copy = iconButton("copy", t("copy"), () => copyText(turn.answer, copy), { "data-action": "copy" });
    this.#actions.replaceChildren(copy);
    /** @param {Parameters<typeof iconButton>} button */
    const add = (...button) => this.#actions.append(iconButton(...button));
    if (last && !answering) add("again", t("regenerate"), this.#controls.regenerate, { "data-action": "regenerate" });
    if (turn.id && may("set_feedback")) {
      for (const like of [true, false]) {
        const pressed = String(turn.like === like);
        const name = like ? "like" : "dislike";
        add(name, t(name), () => this.#rate(like), { "aria-pressed": pressed, "data-action": name });
      }
    }
    if (turn.usage) {
      const expanded = String(!this.#stats.hidden);
      add("clock", t("times"), () => this.#toggleStats(), { "aria-expanded": expanded, "data-action": "times" });
    }
    if (turn.id && !answering && may("delete_message")) {
      add("trash", t("delete"), () => this.#controls.remove(turn), { "data-action": "delete" });
    }
  }

  #toggleStats() {
    this.#statsOpen = !this.#statsOpen;
    const { usage } = this.turn;
    this.#stats.hidden = !this.#statsOpen || !usage;
    this.#actions.querySelector("[data-action=times]")?.setAttribute("aria-expanded", String(this.#statsOpen));
  }

  /** @param {boolean} like */
  async #rate(like) {
    const { turn } = this;
    const said = turn.like === like ? null : like;
    await this.#controls.feedback(turn, said, null);
    turn.like = said;
    for (const name of ["like", "dislike"]) {
      const button = this.#actions.querySelector(`[data-action=${name}]`);
      button?.setAttribute("aria-pressed", String(said === (name === "like")));
    }
    this.element.querySelector(".feedback")?.remove();
    if (said === null) return;
    const form = feedbackForm((comment) => this.#controls.feedback(turn, said, comment));
    this.#actions.after(form);
  }

  /** @param {string} text what the box begins with */
  #edit(text) {
    const { id } = this.turn;
    const box = h("textarea", { "aria-label": t("edit_message"), rows: "3", dir: "auto", "data-role": "edit" });
    box.value = text;
    this.#editing = true;
    const done = () => {
      if (id) this.#controls.setEdited(id, null);
      this.#editing = false;
      form.replaceWith(this.#bubble);
      this.#userActions.hidden = false;
    };
    const cancel = () => {
      done();
      /** @type {HTMLElement | null} */ (this.#userActions.querySelector("[data-action=edit]"))?.focus();
    };
    const send = () => {
      const said = box.value.trim();
      if (!said || !id) return;
      done();
      this.#controls.edit(id, said);
    };
    const onkeydown = (/** @type {KeyboardEvent} */ event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Escape") cancel();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
    };
    box.addEventListener("keydown", onkeydown);
    box.addEventListener("input", () => id && this.#controls.setEdited(id, box.value));
    const form = h("div", { class: "edit" }, [
      box,
      h("div", { class: "edit-actions" }, [
        textButton(t("cancel"), cancel),
        textButton(t("save_send"), send, "primary"),
      ]),
    ]);
    this.#bubble.replaceWith(form);
    this.#userActions.hidden = true;
    return box;
  }
}

/** @param {HTMLElement} block */
function announceBlock(block) {
  const code = block.querySelector("figure.code");
  if (code instanceof HTMLElement) announce(t("code", code.dataset.language ?? ""));
  else announce(block.textContent ?? "");
}
