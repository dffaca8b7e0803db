// A block of code: its language, a button that copies it, and colours once the highlighter is there.

import { highlight } from "./highlight.js";
import { t } from "./i18n.js";
import { copyText } from "./clipboard.js";
import { morph } from "./morph.js";
import { h, icon } from "./view/dom.js";

/** Characters; longer code stays plain while it is being written. */
const HIGHLIGHT_WHILE_WRITTEN = 6000;

/** Characters; longer code stays plain. */
const HIGHLIGHT = 60_000;

/** @type {WeakMap<HTMLElement, { text: string, coloured: boolean }>} what was written last */
const written = new WeakMap();

/**
 * @param {string} language as the fence says it, or empty
 * @param {string} text
 * @param {boolean} complete whether nothing more is to come
 * @returns {HTMLElement}
 */
export function codeBlock(language, text, complete) {
  const code = h("code", {});
  const copy = h("button", { type: "button", class: "button quiet small", "data-action": "copy-code" }, [
    icon("copy"),
    h("span", { "data-text": "copy" }, [t("copy")]),
  ]);
  copy.addEventListener("click", () => copyText(code.textContent ?? "", copy));
  const figure = h("figure", { class: "code", dir: "ltr" }, [
    h("figcaption", {}, [h("span", { class: "language" }, [language]), copy]),
    h("pre", { tabindex: "0" }, [code]),
  ]);
  figure.dataset.language = language;
  write(code, language, text, complete);
  return figure;
}

/**
 * Write on in the block that is there.
 * @param {HTMLElement} figure
 * @param {string} text all of it
 * @param {boolean} complete
 */
export function rewrite(figure, text, complete) {
  const code = figure.querySelector("code");
  if (code) write(code, figure.dataset.language ?? "", text, complete);
}

/**
 * @param {HTMLElement} code
 * @param {string} language
 * @param {string} text
 * @param {boolean} complete
 */
function write(code, language, text, complete) {
  const coloured = text.length <= (complete ? HIGHLIGHT : HIGHLIGHT_WHILE_WRITTEN);
  const last = written.get(code);
  if (last?.text === text && last.coloured === coloured) return;
  written.set(code, { text, coloured });
  show(code, language, text, coloured);
}

/**
 * @param {HTMLElement} code
 * @param {string} language
 * @param {string} text
 * @param {boolean} coloured
 */
function show(code, language, text, coloured) {
  const shown = coloured && highlight(language, text, () => {
    if (written.get(code)?.text === text) show(code, language, text, coloured);
  });
  const nodes = shown || document.createDocumentFragment();
  if (!shown) nodes.append(text);
  morph(code, nodes);
}
