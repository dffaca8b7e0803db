// Markdown to nodes. Whatever a model writes becomes text, or one of the few elements that are listed here.

import { Marked } from "../vendor/marked.js";
import { codeBlock } from "./code.js";
import { sanitized } from "./sanitize.js";

/** @typedef {import("../vendor/marked.js").Token} Token */

const INLINE_MATHS = /^(?:\\\((.+?)\\\)|\$(?![\s$])([^$\n]+?)(?<!\s)\$(?!\d))/;
const BLOCK_MATHS = /^(?:\\\[([\s\S]+?)\\\]|\$\$([\s\S]+?)\$\$)(?:\n+|$)/;

/** @param {string} text */
function escaped(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}

/**
 * Formulas stay as they are written, rather than having their stars and underscores taken for emphasis.
 * @param {"block" | "inline"} level
 * @param {RegExp} rule
 * @param {RegExp} start
 */
function maths(level, rule, start) {
  const [tag, name] = level === "block" ? ["div", "maths-block"] : ["span", "maths"];
  return {
    name,
    level,
    start: (/** @type {string} */ source) => {
      const at = source.search(start);
      return at < 0 ? undefined : at;
    },
    tokenizer(/** @type {string} */ source) {
      const found = rule.exec(source);
      return found ? { type: name, raw: found[0], text: (found[1] ?? found[2] ?? "").trim() } : undefined;
    },
    renderer: (/** @type {any} */ token) => `<${tag} class="${name}">${escaped(token.text)}</${tag}>`,
  };
}

const marked = new Marked({
  gfm: true,
  breaks: true,
  extensions: [maths("block", BLOCK_MATHS, /\\\[|\$\$/), maths("inline", INLINE_MATHS, /\\\(|\$/)],
  renderer: {
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 2); // the page itself has the first two
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
    html({ text }) {
      return /^<br\s*\/?>$/i.test(text.trim()) ? "<br>" : escaped(text);
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
 * @returns {Token[]} its blocks; their `raw` together is the markdown
 */
export function blocksOf(markdown) {
  return marked.lexer(markdown);
}

/**
 * @param {Token[]} tokens
 * @returns {DocumentFragment}
 */
export function nodesOf(tokens) {
  const fragment = sanitized(marked.parser(tokens));
  for (const code of fragment.querySelectorAll("pre > code")) {
    const language = /language-(\S+)/.exec(code.className)?.[1] ?? "";
    code.parentElement?.replaceWith(codeBlock(language, code.textContent ?? "", true));
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "table";
    frame.tabIndex = 0; // wide ones are scrolled
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}
