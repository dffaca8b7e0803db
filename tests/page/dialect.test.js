// The Markdown dialect, without a browser.

import assert from "node:assert/strict";
import { test } from "node:test";

import { parseBlocks, renderHtml } from "../../aiochatstream/page/js/dialect.js";
import { MAX_DEPTH } from "../../aiochatstream/page/js/lexer.js";

/** @param {string} markdown */
const html = (markdown) => renderHtml(parseBlocks(markdown)).trim();

/** @param {string} address */
const link = (address) => `<a href="${encodeURI(address)}">${address}</a>`;

for (const [markdown, expected] of [
  // ranges
  ["5~10分、長くても20~30分", "5~10分、長くても20~30分"],
  ["約3~4人で、1~2時間", "約3~4人で、1~2時間"],
  ["~単語~は消さない", "~単語~は消さない"],
  ["~~削除~~する", "<del>削除</del>する"],
  ["これは~~「古い」~~です", "これは<del>「古い」</del>です"],
  ["10~20개, 30~40개", "10~20개, 30~40개"],
  // addresses
  ["https://example.com/docs（日本語）をご覧ください。", `${link("https://example.com/docs")}（日本語）をご覧ください。`],
  ["詳しくはhttps://example.com/docsを参照。", `詳しくは${link("https://example.com/docs")}を参照。`],
  ["（https://example.com/a?b=1&c=2）", `（<a href="https://example.com/a?b=1&amp;c=2">https://example.com/a?b=1&amp;c=2</a>）`],
  ["「https://example.com」です", `「${link("https://example.com")}」です`],
  ["https://example.com、https://example.org。", `${link("https://example.com")}、${link("https://example.org")}。`],
  ["https://ja.wikipedia.org/wiki/東京 です", `${link("https://ja.wikipedia.org/wiki/東京")} です`],
  ["https://ja.wikipedia.org/wiki/ジョン・レノン、", `${link("https://ja.wikipedia.org/wiki/ジョン・レノン")}、`],
  ["https://example.com/を開く", `${link("https://example.com/")}を開く`],
  ["请访问https://example.com/docs查看。", `请访问${link("https://example.com/docs")}查看。`],
  ["https://example.com에서 확인하세요", `${link("https://example.com")}에서 확인하세요`],
  ["“https://example.com/a”的", `“${link("https://example.com/a")}”的`],
  ["www.example.com。", `<a href="http://www.example.com">www.example.com</a>。`],
  ["連絡はa@example.comまで", `連絡は<a href="mailto:a@example.com">a@example.com</a>まで`],
  // emphasis
  ["**「重要」**です", "<strong>「重要」</strong>です"],
  ["これは**「重要」**です。", "これは<strong>「重要」</strong>です。"],
  ["**重要（必須）**な点", "<strong>重要（必須）</strong>な点"],
  ["**50%**の確率", "<strong>50%</strong>の確率"],
  ["これは**(a)**です", "これは<strong>(a)</strong>です"],
  ["**Python（パイソン）**is", "<strong>Python（パイソン）</strong>is"],
  ["**`code`**です", "<strong><code>code</code></strong>です"],
  ["**[文書](https://example.com)**です", `<strong><a href="https://example.com">文書</a></strong>です`],
  ["*「斜体」*です", "<em>「斜体」</em>です"],
  ["***「両方」***です", "<em><strong>「両方」</strong></em>です"],
  ["**一つ目。**二つ目。**三つ目。**", "<strong>一つ目。</strong>二つ目。<strong>三つ目。</strong>"],
  ["**これは「テスト」**、**次**も", "<strong>これは「テスト」</strong>、<strong>次</strong>も"],
  ["**注意：**请保存", "<strong>注意：</strong>请保存"],
  ["使用**“引号”**的方法", "使用<strong>“引号”</strong>的方法"],
  ["**중요(重要)**합니다", "<strong>중요(重要)</strong>합니다"],
  ["**C++**と**Rust**を比較", "<strong>C++</strong>と<strong>Rust</strong>を比較"],
  ["**npm (v9)**や**yarn**、**`pnpm`**か**Bun**を", "<strong>npm (v9)</strong>や<strong>yarn</strong>、<strong><code>pnpm</code></strong>か<strong>Bun</strong>を"],
  ["*`a`*と~~b~~、ABC**と**DEF", "<em><code>a</code></em>と<del>b</del>、ABC<strong>と</strong>DEF"],
  ["**𠮷野（よしの）**さん", "<strong>𠮷野（よしの）</strong>さん"],
  // text without Japanese
  ["**a**b *c*", "<strong>a</strong>b <em>c</em>"],
  ["my_var_name と __init__ を", "my_var_name と <strong>init</strong> を"],
  ["2 * 3 * 4", "2 * 3 * 4"],
  ["https://example.com/été, (https://example.com/a)", `${link("https://example.com/été")}, (${link("https://example.com/a")})`],
  // dollars
  ["$HOME/$USER", "$HOME/$USER"],
  ["echo $PATH:$HOME ${A}-${B} $(pwd)/$(id)", "echo $PATH:$HOME ${A}-${B} $(pwd)/$(id)"],
  ["$5 and $10, US$5-US$10, $5/月と$10/年", "$5 and $10, US$5-US$10, $5/月と$10/年"],
  ["\\$5\\$", "$5$"],
  ["$x^2$は$y$", `<span class="maths">x^2</span>は<span class="maths">y</span>`],
  ["\\(a_1*b*c\\)", `<span class="maths">a_1*b*c</span>`],
  ["so $$a*b*c$$ is", `so <span class="maths">a*b*c</span> is`],
]) {
  test(`${JSON.stringify(markdown)} is rendered as ${JSON.stringify(expected)}`, () =>
    assert.equal(html(markdown), `<p>${expected}</p>`));
}

test("Japanese in lists and tables follows the same rules", () => {
  const output = html("- **「一」**は5~10分\n- https://example.com（一）\n\n| **「二」**は |\n|---|\n| 1~2、3~4 |");
  assert.match(output, /<li><strong>「一」<\/strong>は5~10分<\/li>/);
  assert.match(output, /<li><a href="https:\/\/example.com">https:\/\/example.com<\/a>（一）<\/li>/);
  assert.match(output, /<th><strong>「二」<\/strong>は<\/th>/);
  assert.match(output, /<td>1~2、3~4<\/td>/);
});

test("a formula on its own lines is a block, in paragraphs and lists", () => {
  assert.equal(html("so\n\\[\nx = a\n+ b\n\\]\nend"), '<p>so</p>\n<div class="maths-block">x = a\n+ b</div><p>end</p>');
  assert.match(html("- so\n  $$\n  x_1\n  $$"), /<div class="maths-block">x_1<\/div>/);
});

test("HTML is shown as text, and does not affect the following text", () => {
  assert.equal(html("<think>\n  a\n*b*\n</think>"), '<div class="plain">&lt;think&gt;\n  a\n*b*\n&lt;/think&gt;</div>');
  assert.equal(html("<code>a & b <b c</code> *d*"), "<p>&lt;code&gt;a &amp; b &lt;b c&lt;/code&gt; <em>d</em></p>");
  assert.equal(html('<a href="x">https://example.com</a'), `<p>&lt;a href=&quot;x&quot;&gt;${link("https://example.com")}&lt;/a</p>`);
});

const NESTED = {
  quotes: ">".repeat(2000),
  "quotes with spaces": "> ".repeat(2000),
  lists: "- ".repeat(2000),
  numbers: "1. ".repeat(2000),
  both: "- > ".repeat(1000),
  "indented lists": Array.from({ length: 200 }, (_, level) => " ".repeat(2 * level) + "- a").join("\n"),
  "long quotes": Array.from({ length: 500 }, (_, level) => ">".repeat(level % 30) + "- a").join("\n") + "\n>".repeat(3000),
  emphasis: "*a **b ".repeat(1000) + "c** d*".repeat(1000),
  stars: "**".repeat(1000) + "a" + "**".repeat(1000),
  "struck out": "~~a *b ".repeat(1000) + "c* d~~".repeat(1000),
};

for (const [name, nested] of Object.entries(NESTED)) {
  test(`only blocks that are nested too deeply become plain text: ${name}`, () => {
    const tokens = parseBlocks(`*before*\n\n${nested}\n\n# after`);
    const output = renderHtml(tokens);
    assert.match(output, /^<p><em>before<\/em><\/p>/);
    assert.match(output, /<h3>after<\/h3>/);
    assert.ok(tokens.some(({ type, raw }) => type === "plain" && raw.trim() === nested.trim()) || depth(output) <= 2 * MAX_DEPTH);
    assert.equal(tokens.map(({ raw }) => raw).join(""), `*before*\n\n${nested}\n\n# after`);
  });
}

/** @param {string} output */
function depth(output) {
  let deepest = 0;
  let level = 0;
  for (const { 1: closing } of output.matchAll(/<(\/?)(?:blockquote|ul|ol|li|em|strong|del)\b/g)) {
    level += closing ? -1 : 1;
    deepest = Math.max(deepest, level);
  }
  return deepest;
}

// about 0.2 s each; in quadratic time they would exceed the limit

/** @param {string} markdown */
function parseInTime(markdown) {
  const before = process.cpuUsage();
  const tokens = parseBlocks(markdown);
  const { user, system } = process.cpuUsage(before);
  assert.ok(user + system < 3_000_000, `${user + system} µs of CPU time`);
  assert.equal(tokens.map(({ raw }) => raw).join(""), markdown);
  return tokens;
}

for (const piece of ["\\[ x ", "\\[ x\n", "a\n\\[x\\]\n", "$$ x\n", "$a", "$ a", "_a", "**日**本", "www.a)", "a\n# h\n", "> a\n"]) {
  test(`many ${JSON.stringify(piece)} are parsed in less than quadratic time`, () => {
    parseInTime(piece.repeat(30_000 / piece.length));
  });
}

for (const [name, begin, end] of [["a line", "a", "b"], ["a table", "|a|\n|-|\n|", "b|"], ["emphasis", "**a", "b**"]]) {
  test(`many spaces in ${name} are parsed in less than quadratic time and remain`, () => {
    parseInTime(begin + " ".repeat(125_000) + end);
  });
}

test("a long list item is parsed in less than quadratic time", () => {
  assert.equal(parseInTime("- " + "a\n  ".repeat(5_000) + "b").length, 1);
});
