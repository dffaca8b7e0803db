// What the server has not taken: the message, why, and what can be done about it.

import { t } from "../i18n.js";
import { h, textButton } from "./dom.js";

/** @typedef {import("../chat.js").Chat} Chat */
/** @typedef {import("../chat.js").Refused} Refused */
/** @typedef {import("../api.js").ApiError} ApiError */

const TICK_MS = 250;

/**
 * @param {Chat} chat whose `refused` is shown
 * @param {(text: string) => void} giveBack puts a message into the message box
 * @returns {HTMLElement}
 */
export function refusal(chat, giveBack) {
  const refused = /** @type {Refused} */ (chat.refused);
  const { ask, error } = refused;
  const countdown = h("span", { class: "countdown", "data-role": "countdown" });
  const box = h("div", { class: "refusal", role: "alert", "data-code": error?.code ?? "not_answered" }, [
    h("p", {}, [reason(refused), " ", countdown]),
    h("div", { class: "refusal-actions" }, [
      ...ways(chat, error, textButton(refused.at ? t("send_now") : t("send_again"), () => chat.retry(), "primary small")),
      "text" in ask
        ? textButton(t("back_to_box"), () => giveBack(chat.giveUp()), "quiet small")
        : textButton(t("give_up"), () => chat.giveUp(), "quiet small"),
    ]),
  ]);
  tick(countdown, chat, refused);
  if (!("text" in ask)) return box;
  const bubble = h("div", { class: "bubble", dir: "auto", "data-role": "unsent" }, [ask.text]);
  return h("div", { class: "unsent" }, [h("div", { class: "user" }, [bubble]), box]);
}

/**
 * @param {Chat} chat whose `failure` is shown
 * @returns {HTMLElement}
 */
export function failure(chat) {
  const error = /** @type {ApiError} */ (chat.failure);
  const known = ["unreachable", "not_ours", "answer_elsewhere"].includes(error.code);
  return h("div", { class: "refusal", role: "alert", "data-code": error.code }, [
    h("p", {}, [known ? reason({ error }) : t("no_history")]),
    h("div", { class: "refusal-actions" }, ways(chat, error, textButton(t("try_again"), () => chat.load(), "primary small"))),
  ]);
}

/**
 * The buttons that lead on from an error.
 * @param {Chat} chat
 * @param {ApiError | null} error
 * @param {HTMLElement} again tries again
 */
function ways(chat, error, again) {
  if (error?.code === "not_ours") return [textButton(t("reload"), () => location.reload(), "primary small"), again];
  if (error?.code === "answer_elsewhere" && chat.lost) {
    return [textButton(t("abandon_lost"), () => chat.abandonLost(), "primary small"), again];
  }
  return [again];
}

/**
 * Show the seconds that are left; a live region would read out each of them.
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
    case "unreachable":
    case "not_ours":
    case "conversation_busy":
    case "conversation_changed":
    case "answer_elsewhere":
      return t(error.code);
    case "internal_server_error":
      return t("broke", error.detail);
    default:
      return t("refused", error?.detail ?? "");
  }
}
