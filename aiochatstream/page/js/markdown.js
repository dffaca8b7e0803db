// Markdown to nodes. Whatever a model writes becomes text, or one of the few elements that sanitize.js lists.

import { htmlOf } from "./dialect.js";
import { sanitized } from "./sanitize.js";

/** @typedef {import("./dialect.js").Token} Token */

export { blocksOf } from "./dialect.js";

/**
 * @param {Token[]} tokens
 * @returns {DocumentFragment} code in it is `pre`, as Marked renders it
 */
export function nodesOf(tokens) {
  const fragment = sanitized(htmlOf(tokens));
  for (const table of fragment.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "table";
    frame.tabIndex = 0; // wide ones are scrolled
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}

/**
 * @param {Element} pre as in what `nodesOf` returns
 * @returns {{ language: string, text: string }}
 */
export function codeOf(pre) {
  const language = /language-(\S+)/.exec(pre.firstElementChild?.className ?? "")?.[1] ?? "";
  return { language, text: (pre.textContent ?? "").replace(/\n$/, "") };
}
