// Markdown that is still being written: what its last characters will become is not known yet. They are shown as what
// they most likely are, so that nothing flickers when the rest arrives.

const FENCE = /^\s*(`{3,}|~{3,})/;

/** Beginnings of a line that may become something else: a heading, list, underline, fence. */
const BEGINNING = /(^|\n) *(#{1,6} *|[-=]+ *|\d{1,9}[.)]? *|(`{3,}|~{3,})[^`\n]*)$/;

const LINK_ON_ITS_WAY = /!?\[([^\][\n]*)\]\([^()\s]*$/;

/** Emphasis, code or a link that opens or closes here. */
const MARKS_AT_THE_END = /(\*{1,3}|_{1,3}|~{1,2}|`{1,2}|!?\[)$/;

const MARKS = /\*\*|\*|~~|_|`/g;

/**
 * @param {string} markdown whose end is still open
 * @returns {string} the same, its half-open ends closed or held back
 */
export function settle(markdown) {
  const start = lastParagraph(markdown);
  if (start === null) return markdown.replace(/\n\s*[`~]+$/, ""); // the beginning of the fence that ends the code
  const text = markdown.slice(start).replace(BEGINNING, "$1").replace(LINK_ON_ITS_WAY, "$1").replace(MARKS_AT_THE_END, "");
  return markdown.slice(0, start) + closed(text);
}

/**
 * @param {string} markdown
 * @returns {number | null} where its last paragraph begins; null inside of fenced code
 */
function lastParagraph(markdown) {
  let fence = "";
  let start = 0;
  let at = 0;
  const lines = markdown.split("\n");
  for (const [number, line] of lines.entries()) {
    const mark = FENCE.exec(line)?.[1];
    const complete = number < lines.length - 1;
    at += line.length + 1;
    if (fence) {
      if (mark?.startsWith(fence) && line.trim() === mark) {
        fence = "";
        start = Math.min(at, markdown.length);
      }
    } else if (mark && complete) {
      fence = mark;
    } else if (complete && line.trim() === "") {
      start = at;
    }
  }
  return fence ? null : start;
}

/** @param {string} text @returns {string} with the emphasis and the code closed that are open */
function closed(text) {
  /** @type {string[]} */
  const open = [];
  for (const { 0: mark, index } of text.matchAll(MARKS)) {
    const before = text[index - 1] ?? " ";
    const after = text[index + mark.length] ?? " ";
    if (open.at(-1) === mark) open.pop();
    else if (open.at(-1) !== "`" && opens(mark, before, after)) open.push(mark);
  }
  if (!open.length) return text;
  const end = text.trimEnd();
  return end + open.reverse().join("") + text.slice(end.length);
}

/**
 * @param {string} mark
 * @param {string} before
 * @param {string} after
 */
function opens(mark, before, after) {
  if (mark === "`") return true;
  if (/\s/.test(after) || before === "\\") return false;
  return mark.length === 2 || /[\s\p{P}]/u.test(before); // 2*3 and snake_case are none
}
