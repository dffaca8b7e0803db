// Conversation files.

import assert from "node:assert/strict";
import { test } from "node:test";

import { parseConversation } from "../../aiochatstream/page/js/files.js";

const MESSAGES = [
  { role: "user", content: "one" },
  { role: "assistant", content: "1", message_id: "a", state: "complete" },
];

test("a conversation is read with its system prompt", () => {
  assert.deepEqual(parseConversation(JSON.stringify({ messages: MESSAGES })), { messages: MESSAGES });
  assert.deepEqual(parseConversation(JSON.stringify({ system: "Be brief.", messages: MESSAGES })), {
    system: "Be brief.",
    messages: MESSAGES,
  });
});

test("thoughts are read", () => {
  const messages = [MESSAGES[0], { ...MESSAGES[1], thinking: "Hm" }];
  assert.deepEqual(parseConversation(JSON.stringify({ messages }))?.messages, messages);
});

test("a running answer is read as interrupted, and unknown fields are ignored", () => {
  const [user, answer] = MESSAGES;
  const messages = [{ ...user, colour: "red" }, { ...answer, state: "running", message_id: 5 }];
  assert.deepEqual(parseConversation(JSON.stringify({ messages }))?.messages, [
    { role: "user", content: "one" },
    { role: "assistant", content: "1", state: "interrupted" },
  ]);
});

for (const text of [
  "no JSON",
  "null",
  "[]",
  "{}",
  '{"messages": 5}',
  JSON.stringify({ messages: MESSAGES.slice(1) }),
  JSON.stringify({ messages: MESSAGES.slice(0, 1) }),
  JSON.stringify({ messages: [...MESSAGES, null] }),
  JSON.stringify({ messages: [{ role: "user", content: 5 }, MESSAGES[1]] }),
]) {
  test(`${text} is not a conversation`, () => assert.equal(parseConversation(text), null));
}
