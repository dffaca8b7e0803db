// Markdown to DOM nodes: text, and the elements that sanitize.js allows.

import { renderHtml } from "./dialect.js";
import { sanitize } from "./sanitize.js";

/** @typedef {import("./dialect.js").Token} Token */

export { parseBlocks } from "./dialect.js";

/**
 * Render blocks; code is in `pre` elements.
 * @param {Token[]} tokens
 * @returns {DocumentFragment}
 */
export function renderNodes(tokens) {
  const fragment = sanitize(renderHtml(tokens));
  for (const table of fragment.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "table";
    frame.tabIndex = 0; // wide tables scroll
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}

/**
 * @param {Element} pre an element that `renderNodes` returned
 * @returns {{ language: string, text: string }}
 */
export function codeOf(pre) {
  const language = /language-(\S+)/.exec(pre.firstElementChild?.className ?? "")?.[1] ?? "";
  return { language, text: (pre.textContent ?? "").replace(/\n$/, "") };
}
