// A refused message: its text, the reason, and buttons to send or withdraw it.

import { t } from "../i18n.js";
import { h, textButton } from "./dom.js";

/** @typedef {import("../chat.js").Chat} Chat */
/** @typedef {import("../delivery.js").Refused} Refused */
/** @typedef {import("../api.js").ApiError} ApiError */

/** Milliseconds between updates of the countdown. */
const TICK_MS = 250;

/**
 * Show the refused message of `chat`.
 * @param {Chat} chat
 * @param {(text: string) => void} restore puts a message into the message box
 * @returns {HTMLElement}
 */
export function refusal(chat, restore) {
  const refused = /** @type {Refused} */ (chat.refused);
  const { request, error } = refused;
  const countdown = h("span", { class: "countdown", "data-role": "countdown" });
  const box = h("div", { class: "refusal", role: "alert", "data-code": error?.code ?? "not_answered" }, [
    h("p", {}, [reason(refused), " ", countdown]),
    h("div", { class: "refusal-actions" }, [
      ...recoveryButtons(
        chat, error, textButton(refused.at ? t("send_now") : t("send_again"), () => chat.retry(), "primary small"),
      ),
      "text" in request
        ? textButton(t("restore"), () => restore(chat.withdraw()), "quiet small")
        : textButton(t("withdraw"), () => chat.withdraw(), "quiet small"),
    ]),
  ]);
  tick(countdown, chat, refused);
  if (!("text" in request)) return box;
  const bubble = h("div", { class: "bubble", dir: "auto", "data-role": "unsent" }, [request.text]);
  return h("div", { class: "unsent" }, [h("div", { class: "user" }, [bubble]), box]);
}

/**
 * Show the error of loading the history of `chat`.
 * @param {Chat} chat
 * @returns {HTMLElement}
 */
export function failure(chat) {
  const error = /** @type {ApiError} */ (chat.failure);
  const known = ["unreachable", "foreign_response", "answer_elsewhere"].includes(error.code);
  return h("div", { class: "refusal", role: "alert", "data-code": error.code }, [
    h("p", {}, [known ? reason({ error }) : t("no_history")]),
    h(
      "div",
      { class: "refusal-actions" },
      recoveryButtons(chat, error, textButton(t("try_again"), () => chat.load(), "primary small")),
    ),
  ]);
}

/**
 * Return the buttons for recovery from an error.
 * @param {Chat} chat
 * @param {ApiError | null} error
 * @param {HTMLElement} again the button that tries again
 */
function recoveryButtons(chat, error, again) {
  if (error?.code === "foreign_response") return [textButton(t("reload"), () => location.reload(), "primary small"), again];
  if (error?.code === "answer_elsewhere" && chat.lost) {
    return [textButton(t("abandon_lost"), () => chat.abandonLost(), "primary small"), again];
  }
  return [again];
}

/**
 * Update the seconds until the retry. Not a live region, which would read out each second.
 * @param {HTMLElement} countdown
 * @param {Chat} chat
 * @param {Refused} refused
 */
function tick(countdown, chat, refused) {
  if (refused.at === null || chat.refused !== refused) return;
  const seconds = Math.max(0, Math.ceil((refused.at - Date.now()) / 1000));
  const text = t("again_in", seconds);
  if (countdown.textContent !== text) countdown.textContent = text;
  setTimeout(() => tick(countdown, chat, refused), TICK_MS);
}

/** @param {{ error: ApiError | null }} refused */
function reason({ error }) {
  switch (error?.code) {
    case undefined:
      return t("not_answered");
    case "too_many_requests":
      return t("busy");
    case "starting":
    case "draining":
    case "store_unavailable":
    case "upstream_unavailable":
    case "unreachable":
    case "foreign_response":
    case "conversation_busy":
    case "conversation_changed":
    case "answer_elsewhere":
      return t(error.code);
    case "internal_server_error":
    case "upstream_failed":
      return t("answer_failed", error.detail);
    default:
      return t("refused", error?.detail ?? "");
  }
}
