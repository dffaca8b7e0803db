// The assistant's avatar: one or two characters, or an image, as configured.

import { h } from "./dom.js";

let avatarValue = "";

/** @param {string} value characters, or the URL of an image; empty: the page's own mark */
export function setAvatar(value) {
  avatarValue = value;
  for (const element of document.querySelectorAll("[data-avatar]")) element.replaceChildren(...render());
}

export function avatar() {
  return h("span", { class: "avatar", "data-avatar": true, "aria-hidden": "true" }, render());
}

/** @returns {(string | Node)[]} */
function render() {
  if (!avatarValue) return [h("span", { class: "mark" })];
  const image = avatarValue.startsWith("data:") || /\.[a-z]+$/i.test(avatarValue);
  return [image ? h("img", { src: avatarValue, alt: "" }) : avatarValue];
}
