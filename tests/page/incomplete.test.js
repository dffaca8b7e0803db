// Incomplete Markdown.

import assert from "node:assert/strict";
import { test } from "node:test";

import { completeMarkdown } from "../../aiochatstream/page/js/incomplete.js";
import { Lexer } from "../../aiochatstream/page/vendor/marked.js";

for (const [incomplete, completed] of [
  ["a **bold", "a **bold**"],
  ["a **bold ", "a **bold** "],
  ["a **bold**", "a **bold**"],
  ["a **", "a "],
  ["a *it", "a *it*"],
  ["a **b *it", "a **b *it***"],
  ["`co", "`co`"],
  ["`a*b", "`a*b`"],
  ["これは**太", "これは**太**"],
  ["~~gone", "~~gone~~"],
  ["2*3 and snake_case", "2*3 and snake_case"],
  ["3 * 4", "3 * 4"],
  ["see [the page](https://exam", "see the page"],
  ["see [the page](https://example.org)", "see [the page](https://example.org)"],
  ["[a\n---\nb](https://exam", "[a\n---\nb](https://exam"],
  ["text\n-", "text\n"],
  ["text\n---", "text\n"],
  ["text\n==", "text\n"],
  ["text\n##", "text\n"],
  ["- a\n\n2", "- a\n\n"],
  ["text\n\n```pyth", "text\n\n"],
  ["```python\nx = `1", "```python\nx = `1"],
  ["```python\nx = 1\n``", "```python\nx = 1"],
  ["```\na **b\n```\n\nc **d", "```\na **b\n```\n\nc **d**"],
  ["**a**\n\n**b", "**a**\n\n**b**"],
]) {
  test(`${JSON.stringify(incomplete)} is shown as ${JSON.stringify(completed)}`, () =>
    assert.equal(completeMarkdown(incomplete), completed));
}

test("all blocks except the last remain unchanged while the text grows", () => {
  const text = "# Title\n\nA *b* **c** `d`\n\n- one\n- two\n\n```js\nlet a = `x`;\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nEnd.";
  const finished = Lexer.lex(text).map((token) => token.raw);
  for (let length = 1; length <= text.length; length += 1) {
    const tokens = Lexer.lex(completeMarkdown(text.slice(0, length)));
    const last = tokens.findLastIndex((token) => token.type !== "space");
    for (const [index, token] of tokens.slice(0, Math.max(0, last)).entries()) {
      assert.equal(token.raw, finished[index], JSON.stringify(text.slice(0, length)));
    }
  }
});
