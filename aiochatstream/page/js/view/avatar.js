// The face of the one who answers: a character or two, or an image, as the server's owner says.

import { h } from "./dom.js";

let face = "";

/** @param {string} given */
export function setAvatar(given) {
  face = given;
  for (const place of document.querySelectorAll("[data-avatar]")) place.replaceChildren(...drawn());
}

export function avatar() {
  return h("span", { class: "avatar", "data-avatar": true, "aria-hidden": "true" }, drawn());
}

/** @returns {(string | Node)[]} */
function drawn() {
  if (!face) return [h("span", { class: "mark" })];
  const image = face.startsWith("data:") || /\.[a-z]+$/i.test(face);
  return [image ? h("img", { src: face, alt: "" }) : face];
}
