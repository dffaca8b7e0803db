// Formulas: they stay as they are written, rather than having their stars and underscores taken for emphasis.

/** @typedef {import("../vendor/marked.js").Tokens.Generic} Generic */

/** Characters; the search for the end of a formula goes no further, so that its cost stays linear. */
const LONGEST_BLOCK = 4000;
const LONGEST_INLINE = 1000;

/** Characters of a paragraph in which the beginning of a formula is looked for. */
const PARAGRAPH = 2000;

const BEGINNING = /^ {0,3}(\\\[|\$\$)/;
const LINE_BEGINNING = /\n( {0,3}(?:\\\[|\$\$)|[ \t]*(?:\n|$))/g;
const BLANK_LINE = /\n[ \t]*\n/;
const REST_OF_LINE = /^[ \t]*(?:\n+|$)/;

/** Between dollars, unless it is money or a shell's variable: a single letter or digit, or something with a sign. */
const FORMULA = /^(?:[\p{L}\p{N}]|(?=.*[\p{L}\p{N}])(?=.*[\\^_=+<>*/|{}()[\]-]).*)$/u;
const DOLLARS = /^\$(?![\s$])([^$\n]+)(?<!\s)\$(?![\w${(])/;
const DOUBLE_DOLLARS = /^\$\$(?![\s$])([^$\n]+)(?<!\s)\$\$(?!\$)/;
const WORD_OR_DOLLAR = /[\w$]/;

/**
 * @param {string} source
 * @returns {{ raw: string, text: string } | null} the formula that is the block at the beginning of `source`
 */
function blockFormula(source) {
  const begun = BEGINNING.exec(source);
  if (!begun) return null;
  const window = source.slice(0, LONGEST_BLOCK);
  const [opening] = begun;
  const closing = begun[1] === "$$" ? "$$" : "\\]";
  const at = window.indexOf(closing, opening.length);
  const text = window.slice(opening.length, at).trim();
  if (at < 0 || !text || BLANK_LINE.test(text)) return null;
  const end = at + closing.length;
  const rest = REST_OF_LINE.exec(source.slice(end, end + LONGEST_BLOCK))?.[0];
  return rest === undefined ? null : { raw: source.slice(0, end) + rest, text };
}

/**
 * @param {string} source
 * @param {string} before the character before it
 * @returns {{ raw: string, text: string } | null} the formula in running text at the beginning of `source`
 */
function inlineFormula(source, before) {
  const window = source.slice(0, LONGEST_INLINE);
  if (window.startsWith("\\(")) {
    const at = window.indexOf("\\)", 2);
    const text = window.slice(2, at).trim();
    return at < 0 || !text ? null : { raw: window.slice(0, at + 2), text };
  }
  if (!window.startsWith("$") || WORD_OR_DOLLAR.test(before)) return null;
  const found = DOUBLE_DOLLARS.exec(window) ?? DOLLARS.exec(window);
  const text = found?.[1] ?? "";
  return found && (found[0].startsWith("$$") || FORMULA.test(text)) ? { raw: found[0], text } : null;
}

/**
 * @param {string} source
 * @returns {number | undefined} index of the first line of the paragraph at the beginning of `source`, its first line
 *   excluded, that begins a formula
 */
export function nextBlockFormula(source) {
  const window = source.slice(0, PARAGRAPH);
  if (!/\n {0,3}(?:\\\[|\$\$)/.test(window)) return undefined;
  LINE_BEGINNING.lastIndex = 0;
  for (let found = LINE_BEGINNING.exec(window); found; found = LINE_BEGINNING.exec(window)) {
    const start = found.index + 1;
    if (!found[1]?.trim()) return undefined; // the paragraph ends
    if (blockFormula(source.slice(start, start + 2 * LONGEST_BLOCK))) return start;
    LINE_BEGINNING.lastIndex = start;
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
      const found = blockFormula(source);
      return found ? { type: "maths-block", ...found } : undefined;
    },
  },
  {
    name: "maths",
    level: /** @type {const} */ ("inline"),
    /** @param {string} source @param {Generic[]} tokens those before it */
    tokenizer(source, tokens) {
      const found = inlineFormula(source, tokens.at(-1)?.raw.at(-1) ?? "");
      return found ? { type: "maths", ...found } : undefined;
    },
  },
];
