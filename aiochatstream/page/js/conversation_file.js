// Conversations in files: JSON, as `aiochatstream chat` saves and loads them, too.

/** @typedef {import("./api.js").HistoryMessage} HistoryMessage */
/** @typedef {{ messages: HistoryMessage[], system?: string }} Saved */

/** Until a browser has surely read what it saves. */
const SAVED_MS = 60_000;

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
  setTimeout(() => URL.revokeObjectURL(url), SAVED_MS);
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
    const told = messages.map(message);
    if (told.length % 2) return null;
    return { messages: told, ...(typeof system === "string" && system ? { system } : {}) };
  } catch {
    return null;
  }
}

/**
 * @param {any} given
 * @param {number} index
 * @returns {HistoryMessage} an answer that was under way is an interrupted one. Throws for what is none
 */
function message({ role, content, message_id, state = "complete" }, index) {
  if (role !== (index % 2 ? "assistant" : "user") || typeof content !== "string") throw new TypeError("no message");
  if (role === "user") return { role, content };
  const id = typeof message_id === "string" && message_id ? { message_id } : {};
  return { role, content, ...id, state: state === "complete" ? "complete" : "interrupted" };
}
