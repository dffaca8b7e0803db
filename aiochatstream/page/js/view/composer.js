// The message box. Each input is stored as the draft of the conversation.

import { byId } from "./dom.js";

/** @typedef {import("../chat.js").Chat} Chat */
/** @typedef {import("../store.js").Store} Store */

/** Return true if the device has an on-screen keyboard. */
const isTouchScreen = () => matchMedia("(hover: none) and (pointer: coarse)").matches;

export class Composer {
  #box = byId("message", HTMLTextAreaElement);
  #send = byId("send", HTMLButtonElement);
  #stop = byId("stop", HTMLButtonElement);
  #store;
  /** @type {Chat | null} */
  #chat = null;

  /**
   * @param {Store} store
   * @param {() => void} editLast called for ArrowUp in an empty box
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

  /** Focus the box, except on touch screens, where focus would open the keyboard. */
  focus() {
    if (!isTouchScreen()) this.#box.focus();
  }

  /**
   * Put a message without an answer back into the box.
   * @param {string} text
   */
  restore(text) {
    if (!text || !this.#chat) return;
    this.#store.restoreDraft(this.#chat.id, text);
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

  /** Fit the height to the text in browsers without `field-sizing`. */
  #resize() {
    if (CSS.supports("field-sizing", "content")) return;
    this.#box.style.height = "auto";
    this.#box.style.height = `${this.#box.scrollHeight}px`;
  }

  /**
   * Handle a key. Enter sends, except during composition by an input method (Safari reports the key after the end of the
   * composition, with key code 229) and on touch screens, whose keyboards have no Shift+Enter.
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
    if (isTouchScreen() && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    void this.#submit();
  }

  async #submit() {
    const chat = this.#chat;
    await chat?.waitForStop();
    const text = this.#box.value;
    if (!chat || chat !== this.#chat || !text.trim() || chat.answering) return;
    const unsent = chat.refused ? chat.withdraw() : "";
    this.#box.value = unsent; // a refused message returns to the box
    this.#changed();
    void chat.send(text);
  }
}
