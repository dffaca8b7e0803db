// Marked's lexer with a maximum depth: it is recursive, and some thousand levels would overflow the stack.

import { Lexer } from "../vendor/marked.js";

/** @typedef {import("../vendor/marked.js").Token} Token */

/** Maximum number of nested calls: two for a quote or a list, one for emphasis or a link. */
export const MAX_DEPTH = 64;

/** Characters of unsuccessful searches for the end of emphasis, after which delimiters are text. */
const EMPHASIS_BUDGET = 600_000;

export class BoundedLexer extends Lexer {
  emphasisBudget = EMPHASIS_BUDGET;
  /** True if some content is nested too deeply; its token is of type `plain`. */
  depthExceeded = false;
  #depth = 0;

  /**
   * @override
   * @param {string} source
   * @param {any} tokens
   * @param {boolean} [clipped]
   * @returns {any}
   */
  blockTokens(source, tokens = [], clipped) {
    return this.#tokens(source, tokens, () => super.blockTokens(source, tokens, clipped));
  }

  /**
   * @override
   * @param {string} source
   * @param {Token[]} tokens
   */
  inlineTokens(source, tokens = []) {
    return this.#tokens(source, tokens, () => super.inlineTokens(source, tokens));
  }

  /**
   * @param {string} source
   * @param {() => any} lex returns the token at the start of `source`; may be recursive
   * @returns {any}
   */
  block(source, lex) {
    const token = this.#nested(lex);
    return token === null ? plain(source) : token;
  }

  /**
   * @param {string} source
   * @param {Token[]} tokens
   * @param {() => any} lex adds to `tokens`
   */
  #tokens(source, tokens, lex) {
    if (this.#nested(lex) === null) tokens.push(plain(source));
    return tokens;
  }

  /**
   * @template Value
   * @param {() => Value} lex
   * @returns {Value | null} null: nested too deeply
   */
  #nested(lex) {
    if (this.#depth >= MAX_DEPTH) {
      this.depthExceeded = true;
      return null;
    }
    this.#depth += 1;
    try {
      return lex();
    } finally {
      this.#depth -= 1;
    }
  }
}

/** @param {string} source */
function plain(source) {
  return { type: "plain", raw: source, text: source };
}
