// The page's texts in the user's language.

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
 * Return the first supported language of `tags`, or English.
 * @param {readonly (string | null | undefined)[]} tags for example `ja-JP`
 * @returns {Locale}
 */
export function chooseLocale(tags) {
  for (const tag of tags) {
    const language = tag?.toLowerCase().split("-")[0];
    if (language === "en" || language === "ja") return language;
  }
  return "en";
}

/**
 * Return a text in the current language.
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
 * Return the value of a setting for the current language.
 * @template Value
 * @param {Value | Record<string, Value> | null | undefined} setting a value for all languages, or values by language
 * @returns {Value | null}
 */
export function localise(setting) {
  if (setting === null || setting === undefined) return null;
  if (typeof setting !== "object" || Array.isArray(setting)) return /** @type {Value} */ (setting);
  const byLocale = /** @type {Record<string, Value>} */ (setting);
  return byLocale[locale] ?? Object.values(byLocale)[0] ?? null;
}

/**
 * Switch to `newLocale` and translate the page.
 * @param {Locale} newLocale
 */
export function setLocale(newLocale) {
  locale = newLocale;
  document.documentElement.lang = newLocale;
  translate(document.body);
}

/**
 * Translate the elements in `root` with the attributes `data-text`, `data-label`, `data-tip` or `data-placeholder`, whose
 * values are keys of the texts.
 * @param {ParentNode} root
 */
export function translate(root) {
  for (const node of root.querySelectorAll("[data-text]")) node.textContent = textFor(node, "data-text");
  for (const node of root.querySelectorAll("[data-label]")) node.setAttribute("aria-label", textFor(node, "data-label"));
  for (const node of root.querySelectorAll("[data-placeholder]")) {
    node.setAttribute("placeholder", textFor(node, "data-placeholder"));
  }
  for (const node of root.querySelectorAll("[data-tip]")) {
    node.setAttribute("aria-label", textFor(node, "data-tip"));
    node.setAttribute("title", textFor(node, "data-tip"));
  }
}

/**
 * @param {Element} node
 * @param {string} attribute
 */
function textFor(node, attribute) {
  return t(/** @type {any} */ (node.getAttribute(attribute)));
}
