// Copying to the clipboard, with feedback on the button.

import { announce } from "./announce.js";
import { t } from "./i18n.js";
import { icon } from "./view/dom.js";

/** Milliseconds that the button shows a check mark. */
const FEEDBACK_MS = 1500;

/**
 * Copy `text`; `button` shows a check mark on success.
 * @param {string} text
 * @param {HTMLElement} button
 */
export async function copyText(text, button) {
  if (!(await writeClipboard(text))) return;
  announce(t("copied"));
  const original = button.querySelector("svg:not(.copied)");
  if (!original) return; // the check mark of the previous click is still shown
  const check = icon("check");
  check.classList.add("copied");
  original.replaceWith(check);
  setTimeout(() => check.replaceWith(original), FEEDBACK_MS);
}

/** @param {string} text @returns {Promise<boolean>} */
async function writeClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyByCommand(text); // plain HTTP has no Clipboard API
  }
}

/** @param {string} text @returns {boolean} */
function copyByCommand(text) {
  const focused = document.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  document.body.append(area);
  area.select();
  const success = document.execCommand("copy");
  area.remove();
  if (focused instanceof HTMLElement) focused.focus();
  return success;
}
