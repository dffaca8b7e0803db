// The Markdown dialect of the page, from Markdown to HTML: GFM with formulas and with emphasis in all scripts; HTML is text.

import { Marked, Tokenizer } from "../vendor/marked.js";
import { addressAt, maskBesideDelimiters, opensBesideCjk } from "./cjk.js";
import { BoundedLexer } from "./lexer.js";
import { maths, nextBlockFormula } from "./maths.js";

/** @typedef {import("../vendor/marked.js").Token} Token */

/** Marked's own tokenizers. @type {any} */
const standard = Tokenizer.prototype;

/** A long word, which is text: searching it for emphasis and addresses would take quadratic time. */
const LONG_WORD = /^[\w.#$%&'*+/=?{|}~-]{1000,}/;

/** Many spaces within a line, which are text: searching them for the line's end would take quadratic time. */
const LONG_SPACES = / {100,}/;

/** Number of characters of a text that are searched for a dollar sign. */
const DOLLAR_WINDOW = 1000;

/** Maximum length of emphasis in characters, delimiters included. */
const MAX_EMPHASIS_LENGTH = 2000;

/** Maximum length of an underlined heading in characters. */
const MAX_HEADING_LENGTH = 2000;

/** @param {string} text */
function escapeHtml(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}

/** @param {string} text */
function plainBlock(text) {
  return `<div class="plain">${escapeHtml(text.replace(/\n+$/, ""))}</div>`;
}

/**
 * Apply Marked's rule for emphasis within the lexer's budget.
 * @param {any} tokenizer its lexer is a BoundedLexer
 * @param {(source: string, masked: string, before: string) => any} rule
 * @param {string} source
 * @param {string} masked ends as `source` does
 * @param {string} [before] the character before it
 */
function emphasis(tokenizer, rule, source, masked, before = "") {
  const { lexer } = tokenizer;
  if (lexer.emphasisBudget <= 0) return undefined;
  const start = masked.length - source.length;
  const window = masked.slice(start, start + MAX_EMPHASIS_LENGTH);
  const token = rule.call(tokenizer, source.slice(0, window.length), window, opensBesideCjk(source, before) ? "" : before);
  if (!token) lexer.emphasisBudget -= window.length;
  return token;
}

/**
 * Apply Marked's recursive rule for quotes or lists up to the lexer's maximum depth.
 * @param {any} tokenizer its lexer is a BoundedLexer
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
    { name: "maths-block", renderer: ({ text }) => `<div class="maths-block">${escapeHtml(text)}</div>` },
    { name: "maths", renderer: ({ text }) => `<span class="maths">${escapeHtml(text)}</span>` },
    { name: "plain", renderer: ({ text }) => plainBlock(text) },
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
      const end = source.length <= MAX_HEADING_LENGTH ? source.length : source.lastIndexOf("\n", MAX_HEADING_LENGTH);
      return standard.lheading.call(this, source.slice(0, nextBlockFormula(source) ?? Math.max(0, end)));
    },
    emStrong(source, masked, before) {
      return /^(?:\*+|_+)\S/.test(source) ? emphasis(this, standard.emStrong, source, masked, before) : undefined;
    },
    del(source, masked, before) {
      // a single tilde is a range: 5~10
      return /^~~[^\s~]/.test(source) ? emphasis(this, standard.del, source, masked, before) : undefined;
    },
    url(source) {
      if (!/^(?:https?:|ftp:|www\.)/i.test(source)) return standard.url.call(this, source);
      const address = addressAt(source);
      return address === null ? undefined : standard.url.call(this, address);
    },
    tag(source) {
      const { inLink, inRawBlock } = this.lexer.state;
      const token = standard.tag.call(this, source);
      Object.assign(this.lexer.state, { inLink, inRawBlock }); // tags are text: the state must not change
      return token;
    },
    inlineText(source) {
      const word = LONG_WORD.exec(source)?.[0];
      if (word !== undefined) return { type: "text", raw: word, text: word, escaped: false };
      const spaces = LONG_SPACES.exec(source);
      if (spaces?.index === 0) return { type: "text", raw: spaces[0], text: spaces[0], escaped: false };
      const dollar = source.slice(0, DOLLAR_WINDOW).indexOf("$", 1); // a formula may start there
      const end = dollar < 0 ? spaces?.index : dollar;
      return standard.inlineText.call(this, end === undefined ? source : source.slice(0, end));
    },
  },
  renderer: {
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 2); // the page itself uses levels 1 and 2
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
    html(token) {
      if (/^<br\s*\/?>$/i.test(token.text.trim())) return "<br>";
      return "block" in token && token.block ? plainBlock(token.text) : escapeHtml(token.text).replaceAll("\n", "<br>");
    },
    image({ href, text }) {
      if (/^data:image\//i.test(href)) return `<img src="${escapeHtml(href)}" alt="${escapeHtml(text)}">`;
      return `<a href="${escapeHtml(href)}">${escapeHtml(text || href)}</a>`; // images of other servers are not loaded
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

/**
 * Parse Markdown into blocks; the concatenation of their `raw` is `markdown`. A block that is nested too deeply becomes
 * plain text.
 * @param {string} markdown
 * @returns {Token[]}
 */
export function parseBlocks(markdown) {
  const lexer = new BoundedLexer(marked.defaults);
  const tokens = lexer.lex(markdown);
  if (!lexer.depthExceeded) return tokens;
  return tokens.map((token) => (containsPlain(token) ? { type: "plain", raw: token.raw, text: token.raw } : token));
}

/** @param {Token} token */
function containsPlain(token) {
  let plain = false;
  marked.walkTokens([token], ({ type }) => {
    plain ||= type === "plain";
  });
  return plain;
}

/** @param {Token[]} tokens */
export function renderHtml(tokens) {
  return marked.parser(tokens);
}
