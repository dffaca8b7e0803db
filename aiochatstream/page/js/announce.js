// What a screen reader says: whole pieces, when they are there, and never each word.

const KEPT = 20;

/** @param {string} text */
export function announce(text) {
  const live = document.getElementById("live");
  if (!live || !text.trim()) return;
  const line = document.createElement("p");
  line.textContent = text;
  live.append(line);
  while (live.childElementCount > KEPT) live.firstElementChild?.remove();
}
