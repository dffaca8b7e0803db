// Client of the server's endpoints. Paths are relative to the page, so that it works under any prefix.

import { acquireSlot } from "./slots.js";
import { IDLE_TIMEOUT_MS, readEvents } from "./stream.js";

/** @typedef {import("./stream.js").ServerEvent} ServerEvent */
/** @typedef {"auto" | "off" | "low" | "medium" | "high"} ThinkingLevel */

/**
 * @typedef {object} HistoryMessage
 * @property {"user" | "assistant"} role
 * @property {string} content
 * @property {string} [message_id]
 * @property {"complete" | "interrupted" | "running"} [state]
 * @property {string} [thinking] the model's thoughts before the answer
 */

/**
 * @typedef {object} Config response of GET /ui_config
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
 * @property {ThinkingLevel} thinking the server's default
 * @property {ThinkingLevel[] | null} thinking_levels that requests may set; null: not yet known, because the model is loading
 */

/**
 * @typedef {object} GenerationParams response of GET /get_generation_params
 * @property {Record<string, any>} generation_params
 * @property {Record<string, [number, number]>} [limits] minimum and maximum
 * @property {Record<string, "user" | "app" | "model" | "default">} [sources] origins of the values
 */

/**
 * Error of a request that failed or was refused. `code` is the server's error code, or "unreachable" (no response, or a
 * proxy's error), or "foreign_response" (the response of another server, for example a login page).
 */
export class ApiError extends Error {
  /**
   * @param {number} status 0: no response, or an error event of a stream
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

  /** True if the same request may succeed after `retryAfter` seconds. */
  get temporary() {
    return this.retryAfter !== null;
  }

  /** True if the server itself refused the request, so that its state is unchanged. */
  get fromServer() {
    return this.status !== 0 && this.code !== "unreachable" && this.code !== "foreign_response";
  }
}

/** Seconds until a refused request is retried, without a Retry-After header. */
const RETRY_SECONDS = 5;

/** Seconds until a request for an answer of another worker is retried. */
const ELSEWHERE_RETRY_SECONDS = 1;

/** Maximum of Retry-After in seconds; larger values would overflow timers. */
const MAX_RETRY_SECONDS = 3600;

/** Milliseconds to wait for the response headers of a small request. */
const HEADERS_TIMEOUT_MS = 10_000;

/** Milliseconds to wait for the response headers of a request that may be large or slow. */
const UPLOAD_TIMEOUT_MS = 60_000;

/** Milliseconds to wait for the body of a response, event streams excepted. */
const BODY_TIMEOUT_MS = 30_000;

/** Statuses of temporary failures besides 5xx: Request Timeout, Too Early, Too Many Requests. */
const TEMPORARY_STATUSES = [408, 425, 429];

/** Network Authentication Required: a captive portal. */
const NETWORK_AUTHENTICATION_REQUIRED = 511;

/** Codes of errors, also of `error` events, after which a retry may succeed. */
const TEMPORARY_CODES = new Set(["too_many_requests", "draining", "upstream_unavailable"]);

/**
 * Return the error of an `error` event or a refused request.
 * @param {number} status
 * @param {any} body
 * @param {string | null} retryAfter the Retry-After header
 */
export function errorOf(status, body, retryAfter = null) {
  if (typeof body?.error !== "string" || status === 401) return foreignError(status, retryAfter);
  const { error: code, detail } = body;
  const temporary = status === 503 || status === 429 || TEMPORARY_CODES.has(code);
  const elsewhere = code === "answer_elsewhere" ? ELSEWHERE_RETRY_SECONDS : null;
  return new ApiError(
    status, code, typeof detail === "string" ? detail : `HTTP ${status}`, temporary ? retrySeconds(retryAfter) : elsewhere,
  );
}

/**
 * Return the error of a response from a proxy or another server.
 * @param {number} status
 * @param {string | null} retryAfter the Retry-After header
 */
function foreignError(status, retryAfter) {
  const temporary =
    (status >= 500 && status !== NETWORK_AUTHENTICATION_REQUIRED) || TEMPORARY_STATUSES.includes(status);
  if (!temporary) return foreignResponse(status);
  return new ApiError(status, "unreachable", `HTTP ${status}`, retrySeconds(retryAfter));
}

/** @param {number} status 0: a redirect */
function foreignResponse(status) {
  return new ApiError(status, "foreign_response", status ? `HTTP ${status}` : "redirect");
}

/** @param {string | null} retryAfter seconds, or a date, which is ignored */
function retrySeconds(retryAfter) {
  return Math.min(MAX_RETRY_SECONDS, Math.max(1, Number(retryAfter ?? RETRY_SECONDS) || RETRY_SECONDS));
}

/** @param {unknown} error */
function unreachable(error) {
  return new ApiError(0, "unreachable", error instanceof Error ? error.message : String(error));
}

/**
 * Request `path` and return the result of `read`. Raises ApiError, and the reason of `init.signal` if that is aborted. The
 * server never redirects these requests: a redirect is from a proxy and leads to a login page.
 * @template Result
 * @param {string} path
 * @param {RequestInit} init
 * @param {(response: Response) => Result | Promise<Result>} read
 * @param {number} timeout milliseconds to wait for the headers
 * @returns {Promise<Result>}
 */
async function request(path, init, read, timeout) {
  const controller = new AbortController();
  const abortAfter = (/** @type {number} */ ms) =>
    setTimeout(() => controller.abort(new Error(`No response within ${ms / 1000} s.`)), ms);
  let timer = abortAfter(timeout);
  try {
    init.signal?.throwIfAborted();
    init.signal?.addEventListener("abort", () => controller.abort(), { once: true });
    const response = await fetch(path, {
      credentials: "same-origin", cache: "no-store", redirect: "manual", ...init, signal: controller.signal,
    });
    clearTimeout(timer);
    timer = abortAfter(BODY_TIMEOUT_MS);
    if (response.type === "opaqueredirect") throw foreignResponse(0);
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
  if (header.split(";", 1)[0]?.trim().toLowerCase() !== type) throw foreignResponse(response.status);
}

/**
 * Return a function that reads a JSON object from a response, and raises ApiError unless `isValid` accepts it.
 * @param {(body: any) => boolean} isValid
 * @returns {(response: Response) => Promise<any>}
 */
function json(isValid = () => true) {
  return async (response) => {
    checkType(response, "application/json");
    const text = await response.text();
    let body;
    try {
      body = JSON.parse(text);
    } catch {
      throw foreignResponse(response.status);
    }
    const valid = typeof body === "object" && body !== null && !Array.isArray(body) && isValid(body);
    if (!valid) throw foreignResponse(response.status);
    return body;
  };
}

/** @param {any} body */
const hasMessages = ({ messages }) =>
  Array.isArray(messages) &&
  messages.every((message) => typeof message?.role === "string" && typeof message.content === "string");

/** @param {any} body */
const isConfig = ({ allow, role, avatar }) =>
  (allow === "all" || Array.isArray(allow)) && typeof role === "string" && typeof avatar === "string";

/** @param {any} body */
const hasParams = ({ generation_params: params }) => typeof params === "object" && params !== null;

/**
 * @param {string} path
 * @param {Record<string, string>} query
 * @param {(body: any) => boolean} [isValid]
 */
function get(path, query = {}, isValid) {
  const search = new URLSearchParams(query).toString();
  return request(search ? `${path}?${search}` : path, {}, json(isValid), HEADERS_TIMEOUT_MS);
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
  return request(path, jsonInit(body), json(), UPLOAD_TIMEOUT_MS);
}

export const api = {
  /** @returns {Promise<Config>} */
  config: () => get("ui_config", {}, isConfig),

  /**
   * @param {object} body
   * @param {AbortSignal} signal
   * @param {() => void} onWait called if the request has to wait for other streams of this browser
   * @returns {Promise<{ events: AsyncGenerator<ServerEvent, void, void>, devTool: boolean }>}
   */
  async chat(body, signal, onWait) {
    const release = await acquireSlot(signal, onWait);
    try {
      const { headers, ...init } = jsonInit(body);
      return await request(
        "chat_stream",
        { ...init, headers: { ...headers, Accept: "text/event-stream" }, signal },
        (response) => {
          checkType(response, "text/event-stream");
          if (!response.body) throw unreachable("no body");
          const devTool = response.headers.get("X-ChatStream-API-DevTool-Enabled") === "enabled";
          return { events: readEvents(response.body, release), devTool };
        },
        IDLE_TIMEOUT_MS,
      );
    } catch (error) {
      release();
      throw error;
    }
  },

  /** @param {string} conversation */
  stop: (conversation) => request("chat_stream/stop", jsonInit({ conversation }), json(), HEADERS_TIMEOUT_MS),

  /** @param {string} commit token of a `done` event */
  commit: (commit) => request("commit", { ...jsonInit({ commit }), keepalive: true }, json(), HEADERS_TIMEOUT_MS),

  /**
   * @param {string} conversation
   * @param {boolean} abandonLost continue without a last answer that no server has
   * @returns {Promise<{ turn: number, messages: HistoryMessage[] }>}
   */
  history: (conversation, abandonLost) =>
    get("history", { conversation, ...(abandonLost ? { abandon_lost: "1" } : {}) }, hasMessages),

  /**
   * @param {string} conversation
   * @param {string} messageId
   */
  deleteMessage: (conversation, messageId) =>
    request(
      `history/${encodeURIComponent(messageId)}?${new URLSearchParams({ conversation })}`,
      { method: "DELETE" },
      json(),
      HEADERS_TIMEOUT_MS,
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

  /** @returns {Promise<GenerationParams>} */
  params: () => get("get_generation_params", {}, hasParams),

  /**
   * @param {Record<string, number | null>} changes null restores the server's default
   * @returns {Promise<GenerationParams>}
   */
  setParams: (changes) => post("set_generation_params", changes),

  /** @param {string} conversation */
  prompt: (conversation) => get("get_prompt", { conversation }),
  load: () => get("get_load"),
  resources: () => get("get_resource_usage"),
};

/** @typedef {typeof api} Api */
