// Incremental rendering of an answer: only the last block is rendered again, and only its changes touch the page.

import { codeBlock, updateCodeBlock } from "./code.js";
import { completeMarkdown } from "./incomplete.js";
import { codeOf, parseBlocks, renderNodes } from "./markdown.js";
import { morph } from "./morph.js";

/** @typedef {import("./markdown.js").Token} Token */

/** A link reference definition, also within quotes and lists. Links anywhere in the text may refer to it. */
const REFERENCE = /^[ \t>*+\-.)\d]*\[[^\]\n]+\]:/m;

export class Blocks {
  #root;
  #onBlockComplete;
  #text = "";
  /** Length of the complete blocks' text. */
  #completeLength = 0;
  /** @type {HTMLElement | null} the last block, which may still grow */
  #openBlock = null;
  #complete = false;
  /** True if an earlier part of the text was already rendered. */
  #growing = false;
  /** True if rendering failed and the text is shown as plain text. */
  #failed = false;

  /**
   * @param {HTMLElement} root the element that contains the blocks
   * @param {(block: HTMLElement) => void} onBlockComplete called for each block that is completed while the answer grows
   */
  constructor(root, onBlockComplete = () => {}) {
    this.#root = root;
    this.#onBlockComplete = onBlockComplete;
  }

  /**
   * Show `text`. If it continues the previous text, complete blocks are not touched. Text that cannot be rendered is shown
   * as plain text.
   * @param {string} text
   * @param {boolean} complete true if the text is final
   */
  show(text, complete) {
    const normalised = text.replaceAll(/\r\n?/g, "\n").replaceAll("\0", "\ufffd"); // as in CommonMark
    if (complete && this.#complete && normalised === this.#text) return;
    if (this.#failed && normalised.startsWith(this.#text)) {
      this.#showPlain(normalised, complete);
      return;
    }
    try {
      this.#render(normalised, complete);
    } catch (error) {
      reportError(error);
      this.#showPlain(normalised, complete);
    }
  }

  /**
   * @param {string} text
   * @param {boolean} complete
   */
  #render(text, complete) {
    // a complete or interrupted answer may be continued in the middle of a block
    if (this.#complete || !text.startsWith(this.#text)) this.#clear();
    this.#growing = this.#text !== "";
    this.#text = text;
    this.#complete = complete;
    if (complete && REFERENCE.test(text)) {
      this.#renderAll();
      return;
    }
    const rest = text.slice(this.#completeLength);
    const tokens = parseBlocks(complete ? rest : completeMarkdown(rest).trimEnd()); // a trailing full-width space ends lists
    const open = complete ? tokens.length : lastBlock(tokens);
    for (const token of tokens.slice(0, open)) {
      this.#completeLength += token.raw.length;
      if (token.type !== "space") this.#completeBlock(token);
    }
    if (complete) this.#completeLength = text.length;
    const token = tokens[open];
    if (token) this.#write(token, false);
  }

  /** Render all blocks again: links may refer to definitions that follow them. */
  #renderAll() {
    const blocks = [...this.#root.children];
    for (const token of parseBlocks(this.#text)) {
      if (token.type === "space") continue;
      const block = blocks.shift();
      this.#openBlock = block instanceof HTMLElement ? block : null;
      this.#write(token, true);
    }
    for (const block of blocks) block.remove();
    this.#openBlock = null;
    this.#completeLength = this.#text.length;
  }

  /** @param {Token} token */
  #completeBlock(token) {
    const block = this.#write(token, true);
    this.#openBlock = null;
    if (this.#growing) this.#onBlockComplete(block);
  }

  /**
   * @param {Token} token
   * @param {boolean} complete
   */
  #write(token, complete) {
    const block = this.#openBlock ?? this.#append();
    this.#openBlock = block;
    const figure = block.firstElementChild;
    if (token.type === "code" && isCodeFrame(figure, languageOf(token))) {
      updateCodeBlock(figure, token.text.replace(/\n$/, ""), complete);
    } else {
      morph(block, renderNodes([token]), codeHooks(complete));
    }
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
   * @param {string} text
   * @param {boolean} complete
   */
  #showPlain(text, complete) {
    if (!this.#failed) this.#clear();
    this.#failed = true;
    this.#text = text;
    this.#complete = complete;
    const block = this.#openBlock ?? this.#append();
    this.#openBlock = block;
    block.classList.add("plain");
    block.textContent = text;
  }

  #clear() {
    this.#root.replaceChildren();
    this.#text = "";
    this.#completeLength = 0;
    this.#openBlock = null;
    this.#failed = false;
  }
}

/**
 * Return hooks that render code in a frame, which stays the same element while the code grows.
 * @param {boolean} complete
 * @returns {import("./morph.js").MorphHooks}
 */
function codeHooks(complete) {
  return {
    patch(current, target) {
      if (!isPre(target)) return false;
      const { language, text } = codeOf(target);
      if (!isCodeFrame(current, language)) return false;
      updateCodeBlock(current, text, complete);
      return true;
    },
    create(target) {
      if (isPre(target)) return frame(target, complete);
      if (target instanceof Element) for (const pre of target.querySelectorAll("pre")) pre.replaceWith(frame(pre, complete));
      return target;
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
 * @returns {node is HTMLElement} true if the node is the frame of a code block in that language
 */
function isCodeFrame(node, language) {
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
