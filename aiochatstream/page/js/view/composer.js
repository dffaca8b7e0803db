// The message box. What stands in it is kept with each key, for each conversation.

import { byId } from "./dom.js";

/** @typedef {import("../chat.js").Chat} Chat */
/** @typedef {import("../store.js").Store} Store */

/** True if the keyboard is on the screen, of which it covers half. */
const touch = () => matchMedia("(hover: none) and (pointer: coarse)").matches;

export class Composer {
  #box = byId("message", HTMLTextAreaElement);
  #send = byId("send", HTMLButtonElement);
  #stop = byId("stop", HTMLButtonElement);
  #store;
  /** @type {Chat | null} */
  #chat = null;

  /**
   * @param {Store} store
   * @param {() => void} editLast what ArrowUp in an empty box does
   */
  constructor(store, editLast) {
    this.#store = store;
    this.#box.addEventListener("input", () => this.#changed());
    this.#box.addEventListener("keydown", (event) => this.#key(event, editLast));
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#submit();
    });
    this.#stop.addEventListener("click", () => {
      void this.#chat?.stop();
      this.focus();
    });
  }

  /** @param {Chat} chat */
  show(chat) {
    this.#chat?.removeEventListener("change", this.#update);
    this.#chat = chat;
    chat.addEventListener("change", this.#update);
    this.#box.value = this.#store.draft(chat.id);
    this.#resize();
    this.#update();
  }

  /** Focus the box. On a touch screen only a tap does that: it opens the keyboard. */
  focus() {
    if (!touch()) this.#box.focus();
  }

  /**
   * Put a message back that was not answered.
   * @param {string} text
   */
  giveBack(text) {
    if (!text || !this.#chat) return;
    this.#store.giveBack(this.#chat.id, text);
    this.#box.value = this.#store.draft(this.#chat.id);
    this.#resize();
    this.#update();
    this.focus();
  }

  #update = () => {
    const answering = this.#chat?.answering ?? false;
    const hadFocus = document.activeElement === this.#send || document.activeElement === this.#stop;
    this.#send.hidden = answering;
    this.#stop.hidden = !answering;
    this.#send.disabled = !this.#box.value.trim();
    if (hadFocus) this.focus();
  };

  #changed() {
    if (this.#chat) this.#store.setDraft(this.#chat.id, this.#box.value);
    this.#resize();
    this.#update();
  }

  /** Where CSS cannot do it (field-sizing). */
  #resize() {
    if (CSS.supports("field-sizing", "content")) return;
    this.#box.style.height = "auto";
    this.#box.style.height = `${this.#box.scrollHeight}px`;
  }

  /**
   * Enter sends, but not while an input method composes (Safari ends that before the key comes, and says 229), and not
   * on a touch screen, whose keyboards have no Shift+Enter.
   * @param {KeyboardEvent} event
   * @param {() => void} editLast
   */
  #key(event, editLast) {
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === "Escape" && this.#chat?.answering) void this.#chat.stop();
    if (event.key === "ArrowUp" && !this.#box.value) {
      event.preventDefault();
      editLast();
    }
    if (event.key !== "Enter" || event.shiftKey || event.altKey) return;
    if (touch() && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    void this.#submit();
  }

  async #submit() {
    const chat = this.#chat;
    await chat?.settled();
    const text = this.#box.value;
    if (!chat || chat !== this.#chat || !text.trim() || chat.answering) return;
    const unsent = chat.refused ? chat.giveUp() : "";
    this.#box.value = unsent; // a message that was refused is not lost to the one that was written after it
    this.#changed();
    void chat.send(text);
  }
}
