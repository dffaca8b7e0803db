// An answer as it grows: only its last block is rendered anew, and of that block only what has changed is touched.

import { codeBlock, rewrite } from "./code.js";
import { settle } from "./incomplete.js";
import { blocksOf, codeOf, nodesOf } from "./markdown.js";
import { morph } from "./morph.js";

/** @typedef {import("./markdown.js").Token} Token */

/** A definition that links anywhere in the text may refer to, in quotes and lists too. */
const REFERENCE = /^[ \t>*+\-.)\d]*\[[^\]\n]+\]:/m;

export class Blocks {
  #root;
  #onClosed;
  #text = "";
  /** Characters of the text in blocks that are closed. */
  #closed = 0;
  /** @type {HTMLElement | null} */
  #open = null;
  #complete = false;
  /** Whether something of it stood there before. */
  #live = false;
  /** Whether drawing it failed, so that it is plain text. */
  #failed = false;

  /**
   * @param {HTMLElement} root where the blocks are put
   * @param {(block: HTMLElement) => void} onClosed told of each block that has become whole while it was looked at
   */
  constructor(root, onClosed = () => {}) {
    this.#root = root;
    this.#onClosed = onClosed;
  }

  /**
   * Show `text`; what was shown before is not touched where `text` goes on from it. Text that cannot be drawn is shown as it
   * is written.
   * @param {string} text
   * @param {boolean} complete whether nothing more is to come
   */
  show(text, complete) {
    const whole = text.replaceAll(/\r\n?/g, "\n").replaceAll("\0", "\ufffd"); // as CommonMark has it
    if (complete && this.#complete && whole === this.#text) return;
    if (this.#failed && whole.startsWith(this.#text)) {
      this.#showPlain(whole, complete);
      return;
    }
    try {
      this.#draw(whole, complete);
    } catch (error) {
      reportError(error);
      this.#showPlain(whole, complete);
    }
  }

  /**
   * @param {string} whole
   * @param {boolean} complete
   */
  #draw(whole, complete) {
    // an answer that was complete, or interrupted, may go on in the middle of a block
    if (this.#complete || !whole.startsWith(this.#text)) this.#clear();
    this.#live = this.#text !== "";
    this.#text = whole;
    this.#complete = complete;
    if (complete && REFERENCE.test(whole)) {
      this.#drawAnew();
      return;
    }
    const rest = whole.slice(this.#closed);
    const tokens = blocksOf(complete ? rest : settle(rest).trimEnd()); // a list ends before a full-width space at the end
    const open = complete ? tokens.length : lastBlock(tokens);
    for (const token of tokens.slice(0, open)) {
      this.#closed += token.raw.length;
      if (token.type !== "space") this.#close(token);
    }
    if (complete) this.#closed = whole.length;
    const token = tokens[open];
    if (token) this.#write(token, false);
  }

  /** All blocks, once the definitions at the end are there that links in them refer to. */
  #drawAnew() {
    const blocks = [...this.#root.children];
    for (const token of blocksOf(this.#text)) {
      if (token.type === "space") continue;
      const block = blocks.shift();
      this.#open = block instanceof HTMLElement ? block : null;
      this.#write(token, true);
    }
    for (const block of blocks) block.remove();
    this.#open = null;
    this.#closed = this.#text.length;
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
    const block = this.#open ?? this.#append();
    this.#open = block;
    const figure = block.firstElementChild;
    if (token.type === "code" && isCodeIn(figure, languageOf(token))) rewrite(figure, token.text.replace(/\n$/, ""), complete);
    else morph(block, nodesOf([token]), codeIn(complete));
    return block;
  }

  #append() {
    const block = document.createElement("div");
    block.className = "block";
    block.dir = "auto";
    this.#root.append(block);
    return block;
  }

  /**
   * @param {string} whole
   * @param {boolean} complete
   */
  #showPlain(whole, complete) {
    if (!this.#failed) this.#clear();
    this.#failed = true;
    this.#text = whole;
    this.#complete = complete;
    const block = this.#open ?? this.#append();
    this.#open = block;
    block.classList.add("plain");
    block.textContent = whole;
  }

  #clear() {
    this.#root.replaceChildren();
    this.#text = "";
    this.#closed = 0;
    this.#open = null;
    this.#failed = false;
  }
}

/**
 * Code in the nodes of a block: it has a frame of its own, which stays while the code in it grows.
 * @param {boolean} complete
 * @returns {import("./morph.js").Special}
 */
function codeIn(complete) {
  return {
    patch(shown, wanted) {
      if (!isPre(wanted)) return false;
      const { language, text } = codeOf(wanted);
      if (!isCodeIn(shown, language)) return false;
      rewrite(shown, text, complete);
      return true;
    },
    make(wanted) {
      if (isPre(wanted)) return frame(wanted, complete);
      if (wanted instanceof Element) for (const pre of wanted.querySelectorAll("pre")) pre.replaceWith(frame(pre, complete));
      return wanted;
    },
  };
}

/**
 * @param {Element} pre
 * @param {boolean} complete
 */
function frame(pre, complete) {
  const { language, text } = codeOf(pre);
  return codeBlock(language, text, complete);
}

/** @param {Node} node @returns {node is Element} */
function isPre(node) {
  return node.nodeName === "PRE";
}

/**
 * @param {Node | null} node
 * @param {string} language
 * @returns {node is HTMLElement} whether it is the frame of code in that language
 */
function isCodeIn(node, language) {
  return node instanceof HTMLElement && node.nodeName === "FIGURE" && node.dataset.language === language;
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
