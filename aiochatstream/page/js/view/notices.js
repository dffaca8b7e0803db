// Short messages that come and go, and questions before something is lost.

import { t } from "../i18n.js";
import { byId, h, iconButton } from "./dom.js";

const SHOWN_MS = 7000;

/**
 * @param {string} text
 * @param {{ stays?: boolean }} [options] stays: until it is closed
 */
export function notice(text, { stays = false } = {}) {
  for (const shown of byId("notices").children) if (shown.textContent === text) shown.remove();
  const line = h("div", { class: "notice" }, [h("p", {}, [text]), iconButton("close", t("close"), () => line.remove())]);
  byId("notices").append(line);
  if (!stays) setTimeout(() => line.remove(), SHOWN_MS);
}

/**
 * Do `what`, and tell where it does not work.
 * @param {() => Promise<unknown>} what
 */
export async function orTell(what) {
  try {
    await what();
  } catch (error) {
    const { code, message } = /** @type {import("../api.js").ApiError} */ (error);
    notice(code === "unreachable" || code === "not_ours" ? t(code) : t("failed", message));
  }
}

/**
 * @param {string} question
 * @param {string} yes what the button that agrees says
 * @returns {Promise<boolean>}
 */
export function confirmed(question, yes) {
  const dialog = byId("confirm", HTMLDialogElement);
  byId("confirm-text").textContent = question;
  byId("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Let the buttons of the question work. */
export function setUpNotices() {
  const dialog = byId("confirm", HTMLDialogElement);
  dialog.querySelector("form")?.addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close("yes");
  });
  byId("confirm-no").addEventListener("click", () => dialog.close());
}
