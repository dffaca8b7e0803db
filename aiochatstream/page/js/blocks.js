// An answer as it grows: only its last block is rendered anew, so that nothing before it moves.

import { rewrite } from "./code.js";
import { settle } from "./halfopen.js";
import { blocksOf, nodesOf } from "./markdown.js";

/** @typedef {import("../vendor/marked.js").Token} Token */

/** A definition that links anywhere in the text may refer to. */
const REFERENCE = /^ {0,3}\[[^\]\n]+\]:/m;

export class Blocks {
  #root;
  #onClosed;
  #text = "";
  /** How much of the text is in blocks that are closed. */
  #closed = 0;
  /** @type {HTMLElement | null} */
  #open = null;
  #complete = false;
  /** Whether something of it stood there before. */
  #live = false;

  /**
   * @param {HTMLElement} root where the blocks are put
   * @param {(block: HTMLElement) => void} onClosed told of each block that has become whole while it was looked at
   */
  constructor(root, onClosed = () => {}) {
    this.#root = root;
    this.#onClosed = onClosed;
  }

  /**
   * Show `text`; what was shown before is not touched where `text` goes on from it.
   * @param {string} text
   * @param {boolean} complete whether nothing more is to come
   */
  show(text, complete) {
    const whole = text.replaceAll("\r\n", "\n").replaceAll("\r", "\n");
    if (complete && this.#complete && whole === this.#text) return;
    // an answer that was complete, or interrupted, may go on in the middle of a block
    if (this.#complete || !whole.startsWith(this.#text)) this.#clear();
    this.#live = this.#text !== "";
    this.#text = whole;
    this.#complete = complete;
    if (complete && REFERENCE.test(whole)) {
      this.#clear();
      this.#text = whole;
      this.#append(blocksOf(whole));
      return;
    }
    const rest = whole.slice(this.#closed);
    const tokens = blocksOf(complete ? rest : settle(rest));
    const open = complete ? tokens.length : lastBlock(tokens);
    for (const token of tokens.slice(0, open)) {
      this.#closed += token.raw.length;
      if (token.type !== "space") this.#close(token);
    }
    if (complete) this.#closed = whole.length;
    const token = tokens[open];
    if (token) this.#write(token, false);
  }

  /** @param {Token} token a block that is whole */
  #close(token) {
    const block = this.#write(token, true);
    this.#open = null;
    if (this.#live) this.#onClosed(block);
  }

  /**
   * @param {Token} token
   * @param {boolean} complete
   */
  #write(token, complete) {
    const block = this.#open ?? this.#append([]);
    this.#open = block;
    const figure = block.firstElementChild;
    const sameCode = figure instanceof HTMLElement && token.type === "code" && figure.dataset.language === languageOf(token);
    if (sameCode) rewrite(figure, token.text, complete);
    else block.replaceChildren(nodesOf([token]));
    return block;
  }

  /** @param {Token[]} tokens */
  #append(tokens) {
    const block = document.createElement("div");
    block.className = "block";
    if (tokens.length) block.append(nodesOf(tokens));
    this.#root.append(block);
    return block;
  }

  #clear() {
    this.#root.replaceChildren();
    this.#text = "";
    this.#closed = 0;
    this.#open = null;
  }
}

/** @param {Token} token fenced code */
function languageOf(token) {
  return ("lang" in token && /\S+/.exec(token.lang ?? "")?.[0]) || "";
}

/** @param {Token[]} tokens @returns {number} index of the last block, which may still grow */
function lastBlock(tokens) {
  const index = tokens.findLastIndex((token) => token.type !== "space");
  return index < 0 ? tokens.length : index;
}
