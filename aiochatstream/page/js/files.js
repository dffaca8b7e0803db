// Conversation files: JSON, in the format of `aiochatstream chat`.

/** @typedef {import("./api.js").HistoryMessage} HistoryMessage */
/** @typedef {{ messages: HistoryMessage[], system?: string }} ConversationFile */

/** Milliseconds until the URL of a download is revoked. */
const REVOKE_MS = 60_000;

/**
 * @param {string} title
 * @param {ConversationFile} conversation
 */
export function download(title, conversation) {
  const json = `${JSON.stringify(conversation, null, 2)}\n`;
  const url = URL.createObjectURL(new Blob([json], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `${title.replaceAll(/[\\/:*?"<>|\s]+/g, " ").trim() || "chat"}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), REVOKE_MS);
}

/**
 * Show the browser's file chooser and read the selected file.
 * @returns {Promise<{ title: string, conversation: ConversationFile | null } | null>} null: the user cancelled;
 *   conversation: null if the file is not a conversation file
 */
export function upload() {
  const input = document.createElement("input");
  input.type = "file";
  input.accept = ".json,application/json";
  return new Promise((resolve) => {
    input.addEventListener("cancel", () => resolve(null));
    input.addEventListener("change", async () => {
      const file = input.files?.[0];
      const title = file?.name.replace(/\.json$/i, "") ?? "";
      resolve(file ? { title, conversation: parseConversation(await file.text()) } : null);
    });
    input.click();
  });
}

/**
 * @param {string} text
 * @returns {ConversationFile | null} null if `text` is not a conversation file
 */
export function parseConversation(text) {
  try {
    const { messages: items, system } = JSON.parse(text);
    const messages = items.map(parseMessage);
    if (messages.length % 2) return null;
    return { messages, ...(typeof system === "string" && system ? { system } : {}) };
  } catch {
    return null;
  }
}

/**
 * Return a message of the file; an answer that was running becomes an interrupted one. Throws TypeError if it is invalid.
 * @param {any} item
 * @param {number} index
 * @returns {HistoryMessage}
 */
function parseMessage({ role, content, message_id, state = "complete", thinking }, index) {
  if (role !== (index % 2 ? "assistant" : "user") || typeof content !== "string") throw new TypeError("invalid message");
  if (role === "user") return { role, content };
  const id = typeof message_id === "string" && message_id ? { message_id } : {};
  const thoughts = typeof thinking === "string" && thinking ? { thinking } : {};
  return { role, content, ...id, state: state === "complete" ? "complete" : "interrupted", ...thoughts };
}
