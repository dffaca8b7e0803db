// Notices, which disappear after some seconds, and the confirmation dialog.

import { t } from "../i18n.js";
import { byId, h, iconButton } from "./dom.js";

/** Milliseconds that a notice is shown. */
const NOTICE_MS = 7000;

/**
 * Show a notice.
 * @param {string} text
 * @param {{ persistent?: boolean }} [options] persistent: show it until the user closes it
 */
export function notice(text, { persistent = false } = {}) {
  for (const earlier of byId("notices").children) if (earlier.textContent === text) earlier.remove();
  const line = h("div", { class: "notice" }, [h("p", {}, [text]), iconButton("close", t("close"), () => line.remove())]);
  byId("notices").append(line);
  if (!persistent) setTimeout(() => line.remove(), NOTICE_MS);
}

/**
 * Run `action`, and show a notice if it fails.
 * @param {() => Promise<unknown>} action
 */
export async function reportErrors(action) {
  try {
    await action();
  } catch (error) {
    const { code, message } = /** @type {import("../api.js").ApiError} */ (error);
    notice(code === "unreachable" || code === "foreign_response" ? t(code) : t("failed", message));
  }
}

/**
 * Show the confirmation dialog.
 * @param {string} question
 * @param {string} yes label of the button that confirms
 * @returns {Promise<boolean>}
 */
export function askConfirmation(question, yes) {
  const dialog = byId("confirm", HTMLDialogElement);
  byId("confirm-text").textContent = question;
  byId("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Connect the buttons of the confirmation dialog. */
export function setUpNotices() {
  const dialog = byId("confirm", HTMLDialogElement);
  dialog.querySelector("form")?.addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close("yes");
  });
  byId("confirm-no").addEventListener("click", () => dialog.close());
}
