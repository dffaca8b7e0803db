// Turns: a message and its answer, as plain data.

/** @typedef {import("./api.js").HistoryMessage} HistoryMessage */

/**
 * @typedef {object} Turn a message and its answer
 * @property {string} user
 * @property {string} answer
 * @property {string} thinking the model's thoughts; empty: none, or not stored
 * @property {number | null} [thinkingSince] time at which the running thought began, on the clock of performance.now();
 *   null: no thought is running
 * @property {number} [thinkingMs] duration of the thoughts, in the tab that received them
 * @property {string | null} id the answer's message id
 * @property {"waiting" | "writing" | "running" | "complete" | "interrupted"} state
 *   waiting: no text yet; writing: this tab receives the thoughts or the answer; running: another tab receives them
 * @property {string} [finish] finish reason
 * @property {Usage} [usage]
 * @property {Timing} [timing]
 * @property {boolean | null} [like]
 */

/**
 * @typedef {{ prompt_tokens: number, cached_tokens: number, completion_tokens: number, thinking_tokens?: number }} Usage
 */
/** @typedef {{ queue_s: number, ttft_s: number, total_s: number }} Timing seconds */

/**
 * @typedef {{ kind: "send", text: string }
 *   | { kind: "edit", text: string, id: string }
 *   | { kind: "regenerate" }
 *   | { kind: "continue" }} TurnRequest
 */

/**
 * Return the turns of a history. Turns of `known` are updated and keep their identity.
 * @param {HistoryMessage[]} messages
 * @param {Turn[]} known
 * @returns {Turn[]}
 */
export function turnsOf(messages, known) {
  const byId = new Map(known.map((turn) => [turn.id, turn]));
  /** @type {Turn[]} */
  const turns = [];
  let user = "";
  for (const { role, content, message_id: id = null, state = "complete", thinking } of messages) {
    if (role === "user") {
      user = content;
      continue;
    }
    const turn = byId.get(id);
    const thoughts = thinking ?? turn?.thinking ?? ""; // cookies do not store them
    turns.push(Object.assign(turn ?? {}, { user, answer: content, thinking: thoughts, id, state }));
  }
  return turns;
}

/**
 * Return the turns with the turn that `request` creates or continues at the end.
 * @param {Turn[]} turns
 * @param {TurnRequest} request
 * @returns {Turn[] | null} null if the turn to edit, regenerate or continue does not exist
 */
export function turnsWith(turns, request) {
  const last = turns.at(-1);
  if (request.kind === "send") return [...turns, newTurn(request.text)];
  if (request.kind === "edit") {
    const index = turns.findIndex((turn) => turn.id === request.id);
    return index < 0 ? null : [...turns.slice(0, index), newTurn(request.text)];
  }
  if (!last) return null;
  return request.kind === "continue" ? turns : [...turns.slice(0, -1), newTurn(last.user)];
}

/** @param {string} user @returns {Turn} */
function newTurn(user) {
  return { user, answer: "", thinking: "", id: null, state: "waiting" };
}

/**
 * Add `text` to the thoughts of `turn`.
 * @param {Turn} turn
 * @param {string} text
 */
export function think(turn, text) {
  turn.thinking += text;
  turn.thinkingSince ??= performance.now() - (turn.thinkingMs ?? 0);
}

/** Note that the thought of `turn` has ended, if one is running. @param {Turn} turn */
export function endThought(turn) {
  if (typeof turn.thinkingSince !== "number") return;
  turn.thinkingMs = performance.now() - turn.thinkingSince;
  turn.thinkingSince = null;
}

/**
 * Return whether one of `turns` is the answer to `request`.
 * @param {Turn[]} turns
 * @param {{ request: TurnRequest, after: string | null, id: string | null }} pending after: message id of the newest
 *   earlier answer; id: message id of the answer itself, if known
 */
export function hasAnswer(turns, { request, after, id }) {
  if (id) return turns.some((turn) => turn.id === id);
  if (!("text" in request)) return false;
  const before = turns.findIndex((turn) => turn.id === after);
  return turns.slice(before + 1).some((turn) => turn.user === request.text);
}

/** Return the fields of POST /chat_stream for `request`. @param {TurnRequest} request */
export function fieldsOf(request) {
  if (request.kind === "send") return { user_input: request.text };
  if (request.kind === "edit") return { user_input: request.text, edit_message_id: request.id };
  return { [request.kind]: true };
}
