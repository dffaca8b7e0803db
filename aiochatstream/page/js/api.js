// The server's endpoints. All paths are relative to the page, so that it works under any prefix.

import { streamSlot } from "./slots.js";
import { readEvents, SILENCE_MS } from "./stream.js";

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

/**
 * A request that was refused or did not get through. `code` is the server's, or "unreachable" (no server answered, or a
 * proxy in its place), or "not_ours" (something else answered, as a login page does, or wants a login).
 */
export class ApiError extends Error {
  /**
   * @param {number} status 0: no response, or an event of a response that was under way
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

  /** True if the server itself refused the request, so that nothing has changed there. */
  get certain() {
    return this.status !== 0 && this.code !== "unreachable" && this.code !== "not_ours";
  }
}

/** Seconds until a refused request is sent again, if the refusal does not name them. */
const RETRY_SECONDS = 5;

/** The same for an answer that another worker may hold. */
const ELSEWHERE_SECONDS = 1;

/** The maximum: more is an error of whoever answered, and overflows timers. */
const MAX_RETRY_SECONDS = 3600;

/** Milliseconds until the headers of a response to a small request. */
const HEADERS_MS = 10_000;

/** The same for a request that may carry a whole conversation, or waits for the server to do something. */
const UPLOAD_MS = 60_000;

/** Milliseconds from the headers to the end of a body that is no stream. */
const BODY_MS = 30_000;

/** Statuses of a passing failure, besides 5xx: Request Timeout, Too Early, Too Many Requests. */
const PASSING = [408, 425, 429];

/** Network Authentication Required: a captive portal. */
const LOGIN_NEEDED = 511;

/**
 * The error of an `error` event or a refused request.
 * @param {number} status
 * @param {any} body
 * @param {string | null} retryAfter the header
 */
export function errorOf(status, body, retryAfter = null) {
  if (typeof body?.error !== "string" || status === 401) return errorOfAnother(status, retryAfter);
  const { error: code, detail } = body;
  const passes = status === 503 || status === 429 || code === "too_many_requests" || code === "draining";
  const elsewhere = code === "answer_elsewhere" ? ELSEWHERE_SECONDS : null;
  return new ApiError(
    status, code, typeof detail === "string" ? detail : `HTTP ${status}`, passes ? secondsOf(retryAfter) : elsewhere,
  );
}

/**
 * The error of a response that this server did not write.
 * @param {number} status
 * @param {string | null} retryAfter the header
 */
function errorOfAnother(status, retryAfter) {
  const passes = (status >= 500 && status !== LOGIN_NEEDED) || PASSING.includes(status);
  return passes ? new ApiError(status, "unreachable", `HTTP ${status}`, secondsOf(retryAfter)) : notOurs(status);
}

/** @param {number} status 0: a redirect */
function notOurs(status) {
  return new ApiError(status, "not_ours", status ? `HTTP ${status}` : "redirect");
}

/** @param {string | null} retryAfter seconds or a date (which counts as none) */
function secondsOf(retryAfter) {
  return Math.min(MAX_RETRY_SECONDS, Math.max(1, Number(retryAfter ?? RETRY_SECONDS) || RETRY_SECONDS));
}

/** @param {unknown} error */
function unreachable(error) {
  return new ApiError(0, "unreachable", error instanceof Error ? error.message : String(error));
}

/**
 * Request `path`, and return what `read` makes of the response. Raises ApiError, and the reason of `init.signal` if that
 * is aborted. The server never redirects these requests: a redirect is a proxy's, and leads to a login.
 * @template Read
 * @param {string} path
 * @param {RequestInit} init
 * @param {(response: Response) => Read | Promise<Read>} read
 * @param {number} patience milliseconds until the headers
 * @returns {Promise<Read>}
 */
async function ask(path, init, read, patience) {
  const late = new AbortController();
  const lateAfter = (/** @type {number} */ ms) =>
    setTimeout(() => late.abort(new Error(`Nothing came within ${ms / 1000} s.`)), ms);
  let timer = lateAfter(patience);
  try {
    init.signal?.throwIfAborted();
    init.signal?.addEventListener("abort", () => late.abort(), { once: true });
    const response = await fetch(path, {
      credentials: "same-origin", cache: "no-store", redirect: "manual", ...init, signal: late.signal,
    });
    clearTimeout(timer);
    timer = lateAfter(BODY_MS);
    if (response.type === "opaqueredirect") throw notOurs(0);
    if (response.ok) return await read(response);
    throw errorOf(response.status, await response.json().catch(() => null), response.headers.get("Retry-After"));
  } catch (error) {
    if (init.signal?.aborted) throw init.signal.reason;
    throw error instanceof ApiError ? error : unreachable(error);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * @param {Response} response
 * @param {string} type
 */
function checkType(response, type) {
  const header = response.headers.get("Content-Type") ?? "";
  if (header.split(";", 1)[0]?.trim().toLowerCase() !== type) throw notOurs(response.status);
}

/**
 * @param {(body: any) => boolean} isOurs
 * @returns {(response: Response) => Promise<any>} reads a JSON object
 */
function json(isOurs = () => true) {
  return async (response) => {
    checkType(response, "application/json");
    const text = await response.text();
    let body;
    try {
      body = JSON.parse(text);
    } catch {
      throw notOurs(response.status);
    }
    if (typeof body !== "object" || body === null || Array.isArray(body) || !isOurs(body)) throw notOurs(response.status);
    return body;
  };
}

/** @param {any} body of a conversation */
const hasMessages = ({ messages }) =>
  Array.isArray(messages) &&
  messages.every((one) => typeof one?.role === "string" && typeof one.content === "string");

/** @param {any} body of the page's configuration */
const isConfig = ({ allow, role, avatar }) =>
  (allow === "all" || Array.isArray(allow)) && typeof role === "string" && typeof avatar === "string";

/** @param {any} body of the parameters */
const hasParams = ({ generation_params: params }) => typeof params === "object" && params !== null;

/**
 * @param {string} path
 * @param {Record<string, string>} query
 * @param {(body: any) => boolean} [isOurs]
 */
function get(path, query = {}, isOurs) {
  const search = new URLSearchParams(query).toString();
  return ask(search ? `${path}?${search}` : path, {}, json(isOurs), HEADERS_MS);
}

/** @param {object} body */
function jsonInit(body) {
  return { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
}

/**
 * @param {string} path
 * @param {object} body
 */
function post(path, body) {
  return ask(path, jsonInit(body), json(), UPLOAD_MS);
}

export const api = {
  /** @returns {Promise<Config>} */
  config: () => get("ui_config", {}, isConfig),

  /**
   * @param {object} body
   * @param {AbortSignal} signal
   * @param {() => void} crowded called if the request has to wait for other streams of this browser
   * @returns {Promise<{ events: AsyncGenerator<ServerEvent, void, void>, devTool: boolean }>}
   */
  async chat(body, signal, crowded) {
    const release = await streamSlot(signal, crowded);
    try {
      const { headers, ...init } = jsonInit(body);
      return await ask(
        "chat_stream",
        { ...init, headers: { ...headers, Accept: "text/event-stream" }, signal },
        (response) => {
          checkType(response, "text/event-stream");
          if (!response.body) throw unreachable("no body");
          const devTool = response.headers.get("X-ChatStream-API-DevTool-Enabled") === "enabled";
          return { events: readEvents(response.body, release), devTool };
        },
        SILENCE_MS,
      );
    } catch (error) {
      release();
      throw error;
    }
  },

  /** @param {string} conversation */
  stop: (conversation) => ask("chat_stream/stop", jsonInit({ conversation }), json(), HEADERS_MS),

  /** @param {string} commit token of a `done` event */
  commit: (commit) => ask("commit", { ...jsonInit({ commit }), keepalive: true }, json(), HEADERS_MS),

  /**
   * @param {string} conversation
   * @param {boolean} abandonLost go on without a last answer that no server has
   * @returns {Promise<{ turn: number, messages: HistoryMessage[] }>}
   */
  history: (conversation, abandonLost) =>
    get("history", { conversation, ...(abandonLost ? { abandon_lost: "1" } : {}) }, hasMessages),

  /**
   * @param {string} conversation
   * @param {string} messageId
   */
  deleteMessage: (conversation, messageId) =>
    ask(
      `history/${encodeURIComponent(messageId)}?${new URLSearchParams({ conversation })}`,
      { method: "DELETE" },
      json(),
      HEADERS_MS,
    ),

  /** @param {string} conversation */
  clear: (conversation) => post("clear_context", { conversation }),

  /**
   * @param {string} conversation
   * @returns {Promise<{ messages: HistoryMessage[] }>}
   */
  exportConversation: (conversation) => get("export", { conversation }, hasMessages),

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
  params: () => get("get_generation_params", {}, hasParams),

  /**
   * @param {Record<string, number | null>} changes null goes back to the server's own
   * @returns {Promise<{ generation_params: Record<string, any> }>}
   */
  setParams: (changes) => post("set_generation_params", changes),

  /** @param {string} conversation */
  prompt: (conversation) => get("get_prompt", { conversation }),
  load: () => get("get_load"),
  resources: () => get("get_resource_usage"),
};

/** @typedef {typeof api} Api */
