// A code block: its language, a copy button, and syntax highlighting as soon as the highlighter is loaded.

import { copyText } from "./clipboard.js";
import { highlight } from "./highlight.js";
import { t } from "./i18n.js";
import { morph } from "./morph.js";
import { h, icon } from "./view/dom.js";

/** Maximum length of highlighted code, in characters, while it is being written. */
const MAX_GROWING_LENGTH = 6000;

/** Maximum length of highlighted code, in characters. */
const MAX_LENGTH = 60_000;

/** @type {WeakMap<HTMLElement, { text: string, highlighted: boolean }>} the content of each code element */
const contents = new WeakMap();

/**
 * @param {string} language the info string of the fence, or empty
 * @param {string} text
 * @param {boolean} complete true if the text is final
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
 * Update the text of a code block.
 * @param {HTMLElement} figure
 * @param {string} text
 * @param {boolean} complete
 */
export function updateCodeBlock(figure, text, complete) {
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
  const highlighted = text.length <= (complete ? MAX_LENGTH : MAX_GROWING_LENGTH);
  const last = contents.get(code);
  if (last?.text === text && last.highlighted === highlighted) return;
  contents.set(code, { text, highlighted });
  render(code, language, text, highlighted);
}

/**
 * @param {HTMLElement} code
 * @param {string} language
 * @param {string} text
 * @param {boolean} highlighted
 */
function render(code, language, text, highlighted) {
  const fragment = highlighted && highlight(language, text, () => {
    if (contents.get(code)?.text === text) render(code, language, text, highlighted);
  });
  const nodes = fragment || document.createDocumentFragment();
  if (!fragment) nodes.append(text);
  morph(code, nodes);
}
