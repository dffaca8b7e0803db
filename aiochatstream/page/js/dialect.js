// Markdown as models write it: GFM with formulas, for all scripts, in which HTML is text. Markdown to HTML; nodes are
// markdown.js's.

import { Marked, Tokenizer } from "../vendor/marked.js";
import { addressIn, maskBesideDelimiters, opensBesideCjk } from "./cjk.js";
import { BoundedLexer } from "./lexer.js";
import { maths, nextBlockFormula } from "./maths.js";

/** @typedef {import("../vendor/marked.js").Token} Token */

/** Marked's own tokenizers. @type {any} */
const standard = Tokenizer.prototype;

/** Characters without a space; looking for emphasis and addresses in longer ones takes quadratic time. */
const ENDLESS_WORD = /^[\w.#$%&'*+/=?{|}~-]{1000,}/;

/** Spaces in the middle of a line; looking for the line's end behind them takes quadratic time. */
const MANY_SPACES = / {100,}/;

/** Characters of a run of text in which a dollar is looked for. */
const WINDOW = 1000;

/** Characters of emphasis, marks included. */
const LONGEST_EMPHASIS = 2000;

/** Characters of a heading that is underlined. */
const LONGEST_HEADING = 2000;

/** @param {string} text */
function escaped(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}

/** @param {string} text as it is written */
function verbatim(text) {
  return `<div class="plain">${escaped(text.replace(/\n+$/, ""))}</div>`;
}

/**
 * Marked's emphasis, within what may be searched for its end.
 * @param {any} tokenizer whose lexer is a BoundedLexer
 * @param {(source: string, masked: string, before: string) => any} rule
 * @param {string} source
 * @param {string} masked ends as `source` does
 * @param {string} [before] the character before it
 */
function emphasis(tokenizer, rule, source, masked, before = "") {
  const { lexer } = tokenizer;
  if (lexer.emphasisBudget <= 0) return undefined;
  const start = masked.length - source.length;
  const window = masked.slice(start, start + LONGEST_EMPHASIS);
  const found = rule.call(tokenizer, source.slice(0, window.length), window, opensBesideCjk(source, before) ? "" : before);
  if (!found) lexer.emphasisBudget -= window.length;
  return found;
}

/**
 * Marked's quotes and lists, which call themselves for each line that continues them.
 * @param {any} tokenizer whose lexer is a BoundedLexer
 * @param {(source: string) => any} rule
 * @param {string} source
 */
function bounded(tokenizer, rule, source) {
  return tokenizer.lexer.block(source, () => rule.call(tokenizer, source));
}

const marked = new Marked({
  gfm: true,
  breaks: true,
  extensions: [
    ...maths,
    { name: "maths-block", renderer: ({ text }) => `<div class="maths-block">${escaped(text)}</div>` },
    { name: "maths", renderer: ({ text }) => `<span class="maths">${escaped(text)}</span>` },
    { name: "plain", renderer: ({ text }) => verbatim(text) },
  ],
  hooks: { emStrongMask: maskBesideDelimiters },
  tokenizer: {
    blockquote(source) {
      return /^ {0,3}>/.test(source) ? bounded(this, standard.blockquote, source) : undefined;
    },
    list(source) {
      return /^ {0,3}(?:[*+-]|\d{1,9}[.)])/.test(source) ? bounded(this, standard.list, source) : undefined;
    },
    lheading(source) {
      const end = source.length <= LONGEST_HEADING ? source.length : source.lastIndexOf("\n", LONGEST_HEADING);
      return standard.lheading.call(this, source.slice(0, nextBlockFormula(source) ?? Math.max(0, end)));
    },
    emStrong(source, masked, before) {
      return /^(?:\*+|_+)\S/.test(source) ? emphasis(this, standard.emStrong, source, masked, before) : undefined;
    },
    del(source, masked, before) {
      // one tilde is a range: 5~10
      return /^~~[^\s~]/.test(source) ? emphasis(this, standard.del, source, masked, before) : undefined;
    },
    url(source) {
      if (!/^(?:https?:|ftp:|www\.)/i.test(source)) return standard.url.call(this, source);
      const address = addressIn(source);
      return address === null ? undefined : standard.url.call(this, address);
    },
    tag(source) {
      const { inLink, inRawBlock } = this.lexer.state;
      const found = standard.tag.call(this, source);
      Object.assign(this.lexer.state, { inLink, inRawBlock }); // tags are text, and so change nothing after them
      return found;
    },
    inlineText(source) {
      const word = ENDLESS_WORD.exec(source)?.[0];
      if (word !== undefined) return { type: "text", raw: word, text: word, escaped: false };
      const spaces = MANY_SPACES.exec(source);
      if (spaces?.index === 0) return { type: "text", raw: spaces[0], text: spaces[0], escaped: false };
      const dollar = source.slice(0, WINDOW).indexOf("$", 1); // a formula may begin there
      const end = dollar < 0 ? spaces?.index : dollar;
      return standard.inlineText.call(this, end === undefined ? source : source.slice(0, end));
    },
  },
  renderer: {
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 2); // the page itself has the first two
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
    html(token) {
      if (/^<br\s*\/?>$/i.test(token.text.trim())) return "<br>";
      return "block" in token && token.block ? verbatim(token.text) : escaped(token.text).replaceAll("\n", "<br>");
    },
    image({ href, text }) {
      const shown = escaped(text || href);
      if (/^data:image\//i.test(href)) return `<img src="${escaped(href)}" alt="${escaped(text)}">`;
      return `<a href="${escaped(href)}">${shown}</a>`; // nothing is fetched from elsewhere
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

/**
 * @param {string} markdown
 * @returns {Token[]} its blocks; their `raw` together is the markdown. One that nests too deeply is plain text.
 */
export function blocksOf(markdown) {
  const lexer = new BoundedLexer(marked.defaults);
  const tokens = lexer.lex(markdown);
  return lexer.exceeded ? tokens.map((token) => (exceeds(token) ? { type: "plain", raw: token.raw, text: token.raw } : token)) : tokens;
}

/** @param {Token} token */
function exceeds(token) {
  let found = false;
  marked.walkTokens([token], ({ type }) => {
    found ||= type === "plain";
  });
  return found;
}

/** @param {Token[]} tokens */
export function htmlOf(tokens) {
  return marked.parser(tokens);
}
