// Messages and their answers, as plain data.

/** @typedef {import("./api.js").HistoryMessage} HistoryMessage */

/**
 * @typedef {object} Turn a message and its answer
 * @property {string} user
 * @property {string} answer
 * @property {string | null} id the answer's message id
 * @property {"waiting" | "writing" | "running" | "complete" | "interrupted"} state
 *   waiting: no text yet; writing: this tab is told it; running: another one is
 * @property {string} [finish] finish reason
 * @property {Usage} [usage]
 * @property {Timing} [timing]
 * @property {boolean | null} [like]
 */

/** @typedef {{ prompt_tokens: number, cached_tokens: number, completion_tokens: number }} Usage */
/** @typedef {{ queue_s: number, ttft_s: number, total_s: number }} Timing seconds */

/**
 * @typedef {{ kind: "send", text: string }
 *   | { kind: "edit", text: string, id: string }
 *   | { kind: "regenerate" }
 *   | { kind: "continue" }} Ask
 */

/**
 * The turns of a history; those that are known are the same objects.
 * @param {HistoryMessage[]} messages
 * @param {Turn[]} known
 * @returns {Turn[]}
 */
export function turnsOf(messages, known) {
  const byId = new Map(known.map((turn) => [turn.id, turn]));
  /** @type {Turn[]} */
  const turns = [];
  let user = "";
  for (const { role, content, message_id: id = null, state = "complete" } of messages) {
    if (role === "user") user = content;
    else turns.push(Object.assign(byId.get(id) ?? {}, { user, answer: content, id, state }));
  }
  return turns;
}

/**
 * The turns with the one at the end that `ask` asks for.
 * @param {Turn[]} turns
 * @param {Ask} ask
 * @returns {Turn[] | null} null where there is nothing to edit, to answer again or to go on with
 */
export function asked(turns, ask) {
  const last = turns.at(-1);
  if (ask.kind === "send") return [...turns, begun(ask.text)];
  if (ask.kind === "edit") {
    const at = turns.findIndex((turn) => turn.id === ask.id);
    return at < 0 ? null : [...turns.slice(0, at), begun(ask.text)];
  }
  if (!last) return null;
  return ask.kind === "continue" ? turns : [...turns.slice(0, -1), begun(last.user)];
}

/** @param {string} user @returns {Turn} */
function begun(user) {
  return { user, answer: "", id: null, state: "waiting" };
}

/**
 * Return whether one of `turns` is the answer to `ask`.
 * @param {Turn[]} turns
 * @param {{ ask: Ask, after: string | null, id: string | null }} pending after: message id of the newest answer before
 *   it; id: its own, if it is known
 */
export function hasAnswer(turns, { ask, after, id }) {
  if (id) return turns.some((turn) => turn.id === id);
  if (!("text" in ask)) return false;
  const before = turns.findIndex((turn) => turn.id === after);
  return turns.slice(before + 1).some((turn) => turn.user === ask.text);
}

/** What a request says of `ask`. @param {Ask} ask */
export function fieldsOf(ask) {
  if (ask.kind === "send") return { user_input: ask.text };
  if (ask.kind === "edit") return { user_input: ask.text, edit_message_id: ask.id };
  return { [ask.kind]: true };
}
