// Incomplete Markdown: the end of an answer that is still being written. Open markup at the end is closed or hidden, so
// that the display does not flicker when the rest arrives.

const FENCE = /^\s*(`{3,}|~{3,})/;

/** The start of a line that may become a heading, a list, an underline or a fence. */
const AMBIGUOUS_LINE = /(^|\n) *(#{1,6} *|[-=]+ *|\d{1,9}[.)]? *|(`{3,}|~{3,})[^`\n]*)$/;

const INCOMPLETE_LINK = /!?\[([^\][\n]*)\]\([^()\s]*$/;

/** Delimiters of emphasis, code or a link at the end of the text. */
const TRAILING_DELIMITER = /(\*{1,3}|_{1,3}|~{1,2}|`{1,2}|!?\[)$/;

const DELIMITERS = /\*\*|\*|~~|_|`/g;

/**
 * Close open markup at the end of `markdown`, and remove delimiters of unknown meaning.
 * @param {string} markdown
 * @returns {string}
 */
export function completeMarkdown(markdown) {
  const start = lastParagraph(markdown);
  if (start === null) return markdown.replace(/\n\s*[`~]+$/, ""); // the first characters of the closing fence
  const text = markdown
    .slice(start)
    .replace(AMBIGUOUS_LINE, "$1")
    .replace(INCOMPLETE_LINK, "$1")
    .replace(TRAILING_DELIMITER, "");
  return markdown.slice(0, start) + closeDelimiters(text);
}

/**
 * @param {string} markdown
 * @returns {number | null} index of the last paragraph; null inside fenced code
 */
function lastParagraph(markdown) {
  let fence = "";
  let start = 0;
  let offset = 0;
  const lines = markdown.split("\n");
  for (const [number, line] of lines.entries()) {
    const mark = FENCE.exec(line)?.[1];
    const complete = number < lines.length - 1;
    offset += line.length + 1;
    if (fence) {
      if (mark?.startsWith(fence) && line.trim() === mark) {
        fence = "";
        start = Math.min(offset, markdown.length);
      }
    } else if (mark && complete) {
      fence = mark;
    } else if (complete && line.trim() === "") {
      start = offset;
    }
  }
  return fence ? null : start;
}

/** Append the closing delimiters of open emphasis and code. @param {string} text @returns {string} */
function closeDelimiters(text) {
  /** @type {string[]} */
  const open = [];
  for (const { 0: mark, index } of text.matchAll(DELIMITERS)) {
    const before = text[index - 1] ?? " ";
    const after = text[index + mark.length] ?? " ";
    if (open.at(-1) === mark) open.pop();
    else if (open.at(-1) !== "`" && isOpening(mark, before, after)) open.push(mark);
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
function isOpening(mark, before, after) {
  if (mark === "`") return true;
  if (/\s/.test(after) || before === "\\") return false;
  return mark.length === 2 || /[\s\p{P}]/u.test(before); // excludes 2*3 and snake_case
}
