// Announcements for screen readers, in a live region: whole blocks, never single words.

/** Maximum number of announcements in the live region. */
const MAX_LINES = 20;

/** @param {string} text */
export function announce(text) {
  const live = document.getElementById("live");
  if (!live || !text.trim()) return;
  const line = document.createElement("p");
  line.textContent = text;
  live.append(line);
  while (live.childElementCount > MAX_LINES) live.firstElementChild?.remove();
}
