// What the page says, in the user's language.

import { en } from "./texts/en.js";
import { ja } from "./texts/ja.js";

/** @typedef {typeof en} Texts */
/** @typedef {"en" | "ja"} Locale */

/** @type {Record<Locale, Texts>} */
const TEXTS = { en, ja };

/** @type {Locale} */
let locale = "en";

/** @returns {Locale} */
export function currentLocale() {
  return locale;
}

/**
 * The first of `wanted` that the page speaks, English otherwise.
 * @param {readonly (string | null | undefined)[]} wanted as `ja-JP`
 * @returns {Locale}
 */
export function chooseLocale(wanted) {
  for (const one of wanted) {
    const language = one?.toLowerCase().split("-")[0];
    if (language === "en" || language === "ja") return language;
  }
  return "en";
}

/**
 * @template {keyof Texts} Key
 * @param {Key} key
 * @param {Texts[Key] extends (...values: infer Values) => string ? Values : []} values
 * @returns {string}
 */
export function t(key, ...values) {
  const text = /** @type {any} */ (TEXTS[locale][key]);
  return typeof text === "function" ? text(...values) : text;
}

/**
 * @template Value
 * @param {Value | Record<string, Value> | null | undefined} given by the server's owner: for all, or by language
 * @returns {Value | null}
 */
export function localised(given) {
  if (given === null || given === undefined) return null;
  if (typeof given !== "object" || Array.isArray(given)) return /** @type {Value} */ (given);
  const byLocale = /** @type {Record<string, Value>} */ (given);
  return byLocale[locale] ?? Object.values(byLocale)[0] ?? null;
}

/**
 * Speak `chosen` from now on, in all that stands in the page's HTML.
 * @param {Locale} chosen
 */
export function speak(chosen) {
  locale = chosen;
  document.documentElement.lang = chosen;
  translate(document.body);
}

/**
 * Put the texts that `data-text`, `data-label`, `data-tip` and `data-placeholder` name into `root`.
 * @param {ParentNode} root
 */
export function translate(root) {
  for (const node of root.querySelectorAll("[data-text]")) node.textContent = named(node, "data-text");
  for (const node of root.querySelectorAll("[data-label]")) node.setAttribute("aria-label", named(node, "data-label"));
  for (const node of root.querySelectorAll("[data-placeholder]")) {
    node.setAttribute("placeholder", named(node, "data-placeholder"));
  }
  for (const node of root.querySelectorAll("[data-tip]")) {
    node.setAttribute("aria-label", named(node, "data-tip"));
    node.setAttribute("title", named(node, "data-tip"));
  }
}

/**
 * @param {Element} node
 * @param {string} attribute
 */
function named(node, attribute) {
  return t(/** @type {any} */ (node.getAttribute(attribute)));
}
