// Conversations in files: JSON, as `aiochatstream chat` saves and loads them, too.

/** @typedef {import("./api.js").HistoryMessage} HistoryMessage */
/** @typedef {{ messages: HistoryMessage[], system?: string }} Saved */

/**
 * Let the browser save `saved`.
 * @param {string} title
 * @param {Saved} saved
 */
export function download(title, saved) {
  const url = URL.createObjectURL(new Blob([`${JSON.stringify(saved, null, 2)}\n`], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `${title.replaceAll(/[\\/:*?"<>|\s]+/g, " ").trim() || "chat"}.json`;
  link.click();
  URL.revokeObjectURL(url);
}

/**
 * Let the user choose a file.
 * @returns {Promise<{ title: string, saved: Saved | null } | null>} null: none was chosen; saved is null where the file
 *   holds no conversation
 */
export function upload() {
  const input = document.createElement("input");
  input.type = "file";
  input.accept = ".json,application/json";
  return new Promise((resolve) => {
    input.addEventListener("cancel", () => resolve(null));
    input.addEventListener("change", async () => {
      const file = input.files?.[0];
      resolve(file ? { title: file.name.replace(/\.json$/i, ""), saved: parsed(await file.text()) } : null);
    });
    input.click();
  });
}

/**
 * @param {string} text
 * @returns {Saved | null}
 */
export function parsed(text) {
  try {
    const { messages, system } = JSON.parse(text);
    const inTurn = messages.every(
      (/** @type {any} */ one, /** @type {number} */ index) =>
        one.role === (index % 2 ? "assistant" : "user") && typeof one.content === "string",
    );
    if (!inTurn || messages.length % 2) return null;
    return { messages, ...(typeof system === "string" && system ? { system } : {}) };
  } catch {
    return null;
  }
}
