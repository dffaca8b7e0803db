// The view of a turn. It shows plain text until the first `update`, which adds buttons and Markdown.

import { announce } from "../announce.js";
import { Blocks } from "../blocks.js";
import { copyText } from "../clipboard.js";
import { currentLocale, t } from "../i18n.js";
import { avatar } from "./avatar.js";
import { feedbackForm } from "./feedback.js";
import { h, iconButton, textButton } from "./dom.js";
import { ThoughtView } from "./thought.js";

/** @typedef {import("../turns.js").Turn} Turn */

/**
 * @typedef {object} TurnContext the state of the conversation that affects a turn's view
 * @property {boolean} last true for the newest turn
 * @property {boolean} answering true while an answer of the conversation is running
 * @property {number} position place in the queue; 0: not queued
 * @property {boolean} stats show tokens and times
 */

/**
 * @typedef {object} Controls actions of the buttons
 * @property {(api: string) => boolean} may returns true if the user's role may call an endpoint
 * @property {(id: string, text: string) => void} edit
 * @property {(id: string) => string | null} editDraft new text of a message that is being edited; null: not being edited
 * @property {(id: string, text: string | null) => void} setEditDraft
 * @property {() => void} regenerate
 * @property {() => void} continueAnswer
 * @property {(turn: Turn) => void} remove
 * @property {(turn: Turn, like: boolean | null, comment: string | null) => Promise<void>} feedback
 */

/** Estimates for turns without layout: pixels of a turn without text, pixels and characters of a line. */
const TURN_HEIGHT = 150;
const LINE_HEIGHT = 28;
const LINE_LENGTH = 70;

export class TurnView {
  #controls;
  #blocks;
  /** @type {ThoughtView | null} */
  #thought = null;
  #text = h("div", { class: "answer plain", dir: "auto", "data-role": "answer" });
  #waiting = h("div", { class: "waiting" });
  #note = h("div", { class: "note" });
  #stats = h("p", { class: "stats" });
  #actions = h("div", { class: "actions" });
  #bubble = h("div", { class: "bubble", dir: "auto", "data-role": "message" });
  #userActions = h("div", { class: "actions" });
  #reply = h("div", { class: "reply-body" }, [this.#text]);
  #interactive = false;
  #statsOpen = false;
  #editing = false;
  #drawnState = "";
  #lastStatus = "";
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

  /** Add the elements that only turns near the screen have. */
  #makeInteractive() {
    if (this.#interactive) return;
    this.#interactive = true;
    this.#text.replaceChildren();
    this.#text.classList.remove("plain");
    this.#text.removeAttribute("dir"); // each block has its own
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

  /** Show new text of the answer and its thoughts. */
  grow() {
    this.#makeInteractive();
    if (this.turn.thinking) this.#thought ??= this.#addThought();
    this.#thought?.update();
    this.#blocks.show(this.turn.answer, !this.#inProgress);
  }

  #addThought() {
    const thought = new ThoughtView(this.turn);
    this.#text.before(thought.element);
    return thought;
  }

  /** @param {TurnContext} context */
  update(context) {
    const { turn } = this;
    const { may } = this.#controls;
    this.#makeInteractive();
    this.#describe();
    this.grow();
    this.#announce(context);
    const options = [currentLocale(), may("set_feedback"), may("delete_message"), this.#statsOpen];
    const state = JSON.stringify([turn.state, turn.id, turn.finish, turn.like, turn.usage, context, ...options]);
    if (state === this.#drawnState) return; // keeps the focus
    this.#drawnState = state;
    this.#drawWaiting(context);
    this.#drawNote(context);
    this.#drawStats(context);
    this.#drawActions(context);
    const draft = turn.id && !context.answering ? this.#controls.editDraft(turn.id) : null;
    if (draft !== null && !this.#editing) this.#edit(draft);
  }

  /**
   * Announce the state of the answer; its text is announced block by block.
   * @param {TurnContext} context
   */
  #announce({ position }) {
    const { state } = this.turn;
    const end = this.#lastStatus && !this.#inProgress && t(state === "complete" ? "complete" : "interrupted");
    const wait = state === "waiting" && (position ? t("queued", position) : t("waiting"));
    const status = end || wait || this.#lastStatus;
    if (status !== this.#lastStatus) announce(status);
    this.#lastStatus = status;
    this.#text.setAttribute("aria-busy", String(this.#inProgress));
  }

  get #inProgress() {
    return this.turn.state === "waiting" || this.turn.state === "writing" || this.turn.state === "running";
  }

  /** @param {TurnContext} context */
  #drawWaiting({ position }) {
    const { state, answer } = this.turn;
    const text = position ? t("queued", position) : state === "running" ? t("elsewhere") : "";
    const visible = state === "waiting" || state === "running";
    const dots = h("span", { class: "dots", "aria-hidden": "true" }, [h("i"), h("i"), h("i")]);
    this.#waiting.hidden = !visible;
    this.#waiting.replaceChildren(dots, h("span", { "data-role": "queue" }, [text]));
    this.element.classList.toggle("empty-answer", visible && !answer);
  }

  /** @param {TurnContext} context */
  #drawNote({ last, answering }) {
    const { state, finish } = this.turn;
    const interrupted = state === "interrupted";
    const cut = state === "complete" && (finish === "length" || finish === "thinking_length");
    const reason = finish === "thinking_length" ? t("cut_off_thinking") : t("cut_off");
    this.#note.hidden = !interrupted && !cut;
    this.#note.replaceChildren(h("span", {}, [interrupted ? t("interrupted") : reason]));
    if (interrupted && last && !answering) {
      this.#note.append(textButton(t("continue"), this.#controls.continueAnswer, "quiet small", "forward"));
    }
  }

  /** @param {TurnContext} context */
  #drawStats({ stats }) {
    const { usage, timing } = this.turn;
    this.#stats.hidden = !(usage && timing && (stats || this.#statsOpen));
    if (!usage || !timing) return;
    const seconds = timing.total_s - timing.ttft_s;
    const rate = seconds > 0 && usage.completion_tokens > 1 ? (usage.completion_tokens - 1) / seconds : null;
    this.#stats.textContent = t("stats", {
      tokens: usage.completion_tokens,
      thoughts: usage.thinking_tokens ?? 0,
      rate: rate === null ? null : rate.toFixed(1),
      first: timing.ttft_s.toFixed(2),
      cached: usage.cached_tokens,
    });
  }

  /** @param {TurnContext} context */
  #drawActions({ last, answering }) {
    const { turn } = this;
    const { may } = this.#controls;
    const copyMessage = iconButton("copy", t("copy"), () => copyText(turn.user, copyMessage));
    const startEdit = () => this.#edit(turn.user).focus();
    const editMessage = turn.id && !answering && iconButton("edit", t("edit"), startEdit, { "data-action": "edit" });
    this.#userActions.replaceChildren(...[copyMessage, editMessage].filter((button) => button instanceof Node));
    this.#actions.hidden = this.#inProgress;
    if (this.#inProgress) return;
    const copy = iconButton("copy", t("copy"), () => copyText(turn.answer, copy), { "data-action": "copy" });
    this.#actions.replaceChildren(...(turn.answer ? [copy] : []));
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
    const rating = turn.like === like ? null : like;
    await this.#controls.feedback(turn, rating, null);
    turn.like = rating;
    for (const name of ["like", "dislike"]) {
      const button = this.#actions.querySelector(`[data-action=${name}]`);
      button?.setAttribute("aria-pressed", String(rating === (name === "like")));
    }
    this.element.querySelector(".feedback")?.remove();
    if (rating === null) return;
    const form = feedbackForm((comment) => this.#controls.feedback(turn, rating, comment));
    this.#actions.after(form);
  }

  /** @param {string} text initial text of the box */
  #edit(text) {
    const { id } = this.turn;
    const box = h("textarea", { "aria-label": t("edit_message"), rows: "3", dir: "auto", "data-role": "edit" });
    box.value = text;
    this.#editing = true;
    const close = () => {
      if (id) this.#controls.setEditDraft(id, null);
      this.#editing = false;
      form.replaceWith(this.#bubble);
      this.#userActions.hidden = false;
    };
    const cancel = () => {
      close();
      /** @type {HTMLElement | null} */ (this.#userActions.querySelector("[data-action=edit]"))?.focus();
    };
    const send = () => {
      const text = box.value.trim();
      if (!text || !id) return;
      close();
      this.#controls.edit(id, text);
    };
    const onkeydown = (/** @type {KeyboardEvent} */ event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Escape") cancel();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
    };
    box.addEventListener("keydown", onkeydown);
    box.addEventListener("input", () => id && this.#controls.setEditDraft(id, box.value));
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
