// Marked's lexer, bounded: it is recursive, and some thousand levels end at the stack's limit.

import { Lexer } from "../vendor/marked.js";

/** @typedef {import("../vendor/marked.js").Token} Token */

/** Levels of quotes and lists in each other, and of emphasis and links in each other. */
export const MAX_DEPTH = 32;

/** Characters that may be searched in vain for the end of emphasis; from there on its marks are text. */
const EMPHASIS_BUDGET = 600_000;

export class BoundedLexer extends Lexer {
  emphasisBudget = EMPHASIS_BUDGET;
  /** Whether something nests deeper; it is a token `plain` then. */
  exceeded = false;
  #depth = 0;

  /**
   * @override
   * @param {string} source
   * @param {Token[]} tokens
   * @param {boolean} [clipped]
   */
  blockTokens(source, tokens = [], clipped) {
    return this.#nested(source, tokens, () => super.blockTokens(source, tokens, clipped));
  }

  /**
   * @override
   * @param {string} source
   * @param {Token[]} tokens
   */
  inlineTokens(source, tokens = []) {
    return this.#nested(source, tokens, () => super.inlineTokens(source, tokens));
  }

  /**
   * @param {string} source
   * @param {Token[]} tokens
   * @param {() => any} lex
   */
  #nested(source, tokens, lex) {
    if (this.#depth >= MAX_DEPTH) {
      this.exceeded = true;
      tokens.push({ type: "plain", raw: source, text: source });
      return tokens;
    }
    this.#depth += 1;
    try {
      return lex();
    } finally {
      this.#depth -= 1;
    }
  }
}
