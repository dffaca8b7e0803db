// The view of a model's thoughts: a line that unfolds their text. Screen readers reach the text only if it is unfolded.

import { t } from "../i18n.js";
import { h, icon } from "./dom.js";

/** @typedef {import("../turns.js").Turn} Turn */

export class ThoughtView {
  #label = h("span");
  #seconds = h("span", { class: "seconds", "aria-hidden": "true" }); // hidden, so that no screen reader counts
  #dots = h("span", { class: "dots", "aria-hidden": "true" }, [h("i"), h("i"), h("i")]);
  #text = h("div", { class: "thought-text", "data-role": "thought" });
  /** The part of the thoughts that has been drawn. */
  #drawn = "";
  #timer = 0;
  #turn;

  /** @param {Turn} turn */
  constructor(turn) {
    this.#turn = turn;
    const line = h("span", {}, [this.#label, this.#seconds]);
    this.element = h("details", { class: "thought" }, [
      h("summary", { onclick: () => this.#drawText() }, [icon("chevron"), line, this.#dots]), // drawn before it unfolds
      this.#text,
    ]);
  }

  /** Show the present state of the turn. */
  update() {
    this.element.hidden = !this.#turn.thinking;
    if (this.element.hidden) return;
    this.#drawSummary();
    if (this.element.open) this.#drawText();
  }

  #drawSummary() {
    const { thinkingSince = null, thinkingMs, state, answer } = this.#turn;
    const clock = thinkingSince === null ? 0 : Math.floor((performance.now() - thinkingSince) / 1000);
    const running = thinkingSince !== null || (state === "running" && !answer);
    const duration = thinkingMs === undefined ? null : Math.max(1, Math.round(thinkingMs / 1000));
    const settled = duration === null ? t("thoughts") : t("thought_time", duration);
    setText(this.#label, running ? t("thinking") : settled);
    setText(this.#seconds, clock ? t("thinking_time", clock) : "");
    this.#dots.hidden = !running;
    this.element.classList.toggle("running", running);
    if (thinkingSince !== null) this.#tick(thinkingSince);
  }

  /** Update the summary at the next whole second. @param {number} since time at which the thought began */
  #tick(since) {
    clearTimeout(this.#timer);
    const elapsed = performance.now() - since;
    this.#timer = setTimeout(() => {
      if (this.element.isConnected) this.#drawSummary();
    }, 1000 - (elapsed % 1000));
  }

  /** Append the new text. Each line is an element, so that the others need no new layout. */
  #drawText() {
    const { thinking } = this.#turn;
    if (thinking === this.#drawn) return;
    if (!thinking.startsWith(this.#drawn)) {
      this.#text.replaceChildren();
      this.#drawn = "";
    }
    const lines = thinking.slice(this.#drawn.length).split(/(?<=\n)/);
    if (this.#drawn && !this.#drawn.endsWith("\n")) this.#text.lastElementChild?.append(lines.shift() ?? "");
    const fragment = document.createDocumentFragment();
    for (const line of lines) fragment.append(h("div", { dir: "auto" }, [line]));
    this.#text.append(fragment);
    this.#drawn = thinking;
  }
}

/**
 * Set the text of `element`, if it differs.
 * @param {HTMLElement} element
 * @param {string} text
 */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
