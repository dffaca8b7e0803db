// Copying, and saying that it was done.

import { announce } from "./announce.js";
import { t } from "./i18n.js";
import { icon } from "./view/dom.js";

const SHOWN_MS = 1500;

/**
 * @param {string} text
 * @param {HTMLElement} button shows for a moment that it was copied
 */
export async function copyText(text, button) {
  if (!(await copied(text))) return;
  announce(t("copied"));
  const sign = button.querySelector("svg:not(.copied)");
  if (!sign) return; // it still shows that of the click before
  const check = icon("check");
  check.classList.add("copied");
  sign.replaceWith(check);
  setTimeout(() => check.replaceWith(sign), SHOWN_MS);
}

/** @param {string} text */
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedByCommand(text); // a page over plain HTTP has no clipboard
  }
}

/** @param {string} text */
function copiedByCommand(text) {
  const focused = document.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (focused instanceof HTMLElement) focused.focus();
  return done;
}
