// The server's endpoints. All paths are relative to the page, so that it works under any prefix.

import { readEvents } from "./stream.js";

/** @typedef {import("./stream.js").ServerEvent} ServerEvent */

/**
 * @typedef {object} HistoryMessage
 * @property {"user" | "assistant"} role
 * @property {string} content
 * @property {string} [message_id]
 * @property {"complete" | "interrupted" | "running"} [state]
 */

/**
 * @typedef {object} Config what GET /ui_config tells
 * @property {string | Record<string, string> | null} title
 * @property {string | Record<string, string> | null} welcome
 * @property {string} avatar
 * @property {string | null} accent
 * @property {string | null} accent_dark
 * @property {string[] | Record<string, string[]> | null} examples
 * @property {string | null} locale
 * @property {string | null} theme
 * @property {string} role
 * @property {"all" | string[]} allow
 * @property {boolean} dev_tool
 * @property {boolean} system_prompt
 */

/** What the server refused, or that it could not be reached (then code is "unreachable" and status 0). */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} code
   * @param {string} detail
   * @param {number | null} retryAfter seconds
   */
  constructor(status, code, detail, retryAfter = null) {
    super(detail);
    this.status = status;
    this.code = code;
    this.detail = detail;
    this.retryAfter = retryAfter;
  }

  /** Whether the same request may well succeed in a moment. */
  get passes() {
    return this.retryAfter !== null;
  }
}

/** Seconds until a request is sent again that was refused without saying when. */
const RETRY_SECONDS = 5;

/**
 * The error that an `error` event or a refused request tells of.
 * @param {number} status
 * @param {any} body
 * @param {string | null} retryAfter the header
 */
export function errorOf(status, body, retryAfter = null) {
  const told = body && typeof body === "object" ? body : {};
  const code = typeof told.error === "string" ? told.error : `http_${status}`;
  const detail = typeof told.detail === "string" ? told.detail : `HTTP ${status}`;
  const passes = status === 503 || status === 429 || code === "too_many_requests" || code === "draining";
  const seconds = retryAfter === null ? RETRY_SECONDS : Number(retryAfter);
  return new ApiError(status, code, detail, passes ? Math.max(1, seconds || RETRY_SECONDS) : null);
}

/** @param {unknown} error */
function unreachable(error) {
  return new ApiError(0, "unreachable", error instanceof Error ? error.message : String(error));
}

/**
 * @param {string} path
 * @param {RequestInit} [init]
 */
async function ask(path, init) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", cache: "no-store", ...init });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw unreachable(error);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw errorOf(response.status, body, response.headers.get("Retry-After"));
}

/**
 * @param {string} path
 * @param {Record<string, string>} [query]
 * @returns {Promise<any>}
 */
async function get(path, query) {
  return (await ask(query ? `${path}?${new URLSearchParams(query)}` : path)).json();
}

/**
 * @param {string} path
 * @param {object} body
 * @param {RequestInit} [init]
 */
function post(path, body, init) {
  const headers = { "Content-Type": "application/json", .../** @type {any} */ (init?.headers ?? {}) };
  return ask(path, { method: "POST", body: JSON.stringify(body), ...init, headers });
}

export const api = {
  /** @returns {Promise<Config>} */
  config: () => get("ui_config"),

  /**
   * @param {object} body
   * @param {AbortSignal} signal
   * @returns {Promise<{ events: AsyncGenerator<ServerEvent, void, void>, devTool: boolean }>}
   */
  async chat(body, signal) {
    const response = await post("chat_stream", body, { signal, headers: { Accept: "text/event-stream" } });
    if (!response.body) throw unreachable("no body");
    const devTool = response.headers.get("X-ChatStream-API-DevTool-Enabled") === "enabled";
    return { events: readEvents(response.body), devTool };
  },

  /** @param {string} conversation */
  stop: (conversation) => post("chat_stream/stop", { conversation }),

  /** @param {string} commit what the `done` event said */
  commit: (commit) => post("commit", { commit }, { keepalive: true }),

  /**
   * @param {string} conversation
   * @returns {Promise<{ turn: number, messages: HistoryMessage[] }>}
   */
  history: (conversation) => get("history", { conversation }),

  /**
   * @param {string} conversation
   * @param {string} messageId
   */
  deleteMessage: (conversation, messageId) =>
    ask(`history/${encodeURIComponent(messageId)}?${new URLSearchParams({ conversation })}`, { method: "DELETE" }),

  /** @param {string} conversation */
  clear: (conversation) => post("clear_context", { conversation }),

  /**
   * @param {string} conversation
   * @returns {Promise<{ messages: HistoryMessage[] }>}
   */
  exportConversation: (conversation) => get("export", { conversation }),

  /**
   * @param {string} conversation
   * @param {HistoryMessage[]} messages
   */
  importConversation: (conversation, messages) => post("import", { conversation, messages }),

  /**
   * @param {string} conversation
   * @param {string} messageId
   * @param {boolean | null} isLike
   * @param {object | null} formData
   */
  feedback: (conversation, messageId, isLike, formData) =>
    post("set_feedback", { conversation, message_id: messageId, is_like: isLike, form_data: formData }),

  /** @returns {Promise<{ generation_params: Record<string, any>, limits?: Record<string, [number, number]> }>} */
  params: () => get("get_generation_params"),

  /**
   * @param {Record<string, number | null>} changes null goes back to the server's own
   * @returns {Promise<{ generation_params: Record<string, any> }>}
   */
  setParams: async (changes) => (await post("set_generation_params", changes)).json(),

  /** @param {string} conversation */
  prompt: (conversation) => get("get_prompt", { conversation }),
  load: () => get("get_load"),
  resources: () => get("get_resource_usage"),
};

/** @typedef {typeof api} Api */
