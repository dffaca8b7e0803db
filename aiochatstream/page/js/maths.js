// Formulas, which remain in their TeX notation: asterisks and underscores in them are not emphasis.

/** @typedef {import("../vendor/marked.js").Tokens.Generic} Generic */

/** Maximum length of a formula in characters, so that the search for its end takes linear time. */
const MAX_BLOCK_LENGTH = 4000;
const MAX_INLINE_LENGTH = 1000;

/** Number of characters of a paragraph that are searched for the start of a formula. */
const PARAGRAPH_WINDOW = 2000;

const BLOCK_OPENING = /^ {0,3}(\\\[|\$\$)/;
const LINE_START = /\n( {0,3}(?:\\\[|\$\$)|[ \t]*(?:\n|$))/g;
const BLANK_LINE = /\n[ \t]*\n/;
const REST_OF_LINE = /^[ \t]*(?:\n+|$)/;

/** The text between dollar signs: a single letter or digit, or a text with an operator. Excludes prices and variables. */
const FORMULA = /^(?:[\p{L}\p{N}]|(?=.*[\p{L}\p{N}])(?=.*[\\^_=+<>*/|{}()[\]-]).*)$/u;
const DOLLARS = /^\$(?![\s$])([^$\n]+)(?<!\s)\$(?![\w${(])/;
const DOUBLE_DOLLARS = /^\$\$(?![\s$])([^$\n]+)(?<!\s)\$\$(?!\$)/;
const WORD_OR_DOLLAR = /[\w$]/;

/**
 * @param {string} source
 * @returns {{ raw: string, text: string } | null} the formula block at the start of `source`
 */
function blockFormula(source) {
  const match = BLOCK_OPENING.exec(source);
  if (!match) return null;
  const window = source.slice(0, MAX_BLOCK_LENGTH);
  const [opening] = match;
  const closing = match[1] === "$$" ? "$$" : "\\]";
  const index = window.indexOf(closing, opening.length);
  const text = window.slice(opening.length, index).trim();
  if (index < 0 || !text || BLANK_LINE.test(text)) return null;
  const end = index + closing.length;
  const rest = REST_OF_LINE.exec(source.slice(end, end + MAX_BLOCK_LENGTH))?.[0];
  return rest === undefined ? null : { raw: source.slice(0, end) + rest, text };
}

/**
 * @param {string} source
 * @param {string} before the character before `source`
 * @returns {{ raw: string, text: string } | null} the inline formula at the start of `source`
 */
function inlineFormula(source, before) {
  const window = source.slice(0, MAX_INLINE_LENGTH);
  if (window.startsWith("\\(")) {
    const index = window.indexOf("\\)", 2);
    const text = window.slice(2, index).trim();
    return index < 0 || !text ? null : { raw: window.slice(0, index + 2), text };
  }
  if (!window.startsWith("$") || WORD_OR_DOLLAR.test(before)) return null;
  const match = DOUBLE_DOLLARS.exec(window) ?? DOLLARS.exec(window);
  const text = match?.[1] ?? "";
  return match && (match[0].startsWith("$$") || FORMULA.test(text)) ? { raw: match[0], text } : null;
}

/**
 * Return the index of the first line that starts a formula in the paragraph at the start of `source`. The paragraph's
 * first line is not considered.
 * @param {string} source
 * @returns {number | undefined}
 */
export function nextBlockFormula(source) {
  const window = source.slice(0, PARAGRAPH_WINDOW);
  if (!/\n {0,3}(?:\\\[|\$\$)/.test(window)) return undefined;
  LINE_START.lastIndex = 0;
  for (let match = LINE_START.exec(window); match; match = LINE_START.exec(window)) {
    const start = match.index + 1;
    if (!match[1]?.trim()) return undefined; // the paragraph ends
    if (blockFormula(source.slice(start, start + 2 * MAX_BLOCK_LENGTH))) return start;
    LINE_START.lastIndex = start;
  }
  return undefined;
}

/** Marked's extensions for formulas. */
export const maths = [
  {
    name: "maths-block",
    level: /** @type {const} */ ("block"),
    /** @this {import("../vendor/marked.js").TokenizerThis} @param {string} source */
    start(source) {
      return this.lexer.state.top ? nextBlockFormula(source) : undefined;
    },
    /** @param {string} source */
    tokenizer(source) {
      const formula = blockFormula(source);
      return formula ? { type: "maths-block", ...formula } : undefined;
    },
  },
  {
    name: "maths",
    level: /** @type {const} */ ("inline"),
    /** @param {string} source @param {Generic[]} tokens the preceding tokens */
    tokenizer(source, tokens) {
      const formula = inlineFormula(source, tokens.at(-1)?.raw.at(-1) ?? "");
      return formula ? { type: "maths", ...formula } : undefined;
    },
  },
];
