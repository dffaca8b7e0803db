// Markdown in Japanese, Chinese and Korean. CommonMark and GFM define emphasis and addresses by spaces and by the
// punctuation beside them; these scripts write none of the spaces, and have punctuation of their own.

/** A character of these scripts, their punctuation and full-width forms included. */
const CJK = /[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Hangul}\p{scx=Bopomofo}\u3000-\u303f\uff00-\uffef]/u;

const PUNCTUATION = /[\p{P}\p{S}]/u;

const SPACE = /\s/;

/** Runs that open or close emphasis in the middle of a word. */
const DELIMITERS = /\*+|~~/g;

const LETTER = String.raw`(?!\p{scx=Han}\p{P})[\p{L}\p{M}\p{N}]`;
const CJK_LETTER = String.raw`(?:(?=[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Hangul}\p{scx=Bopomofo}])${LETTER})`;

/** Characters that end an address: spaces, full-width forms, punctuation that is not ASCII. */
const ENDS = String.raw`\s<\u2010-\u2027\u2030-\u205e\u3000-\u3004\u3008-\u3020\u3030\uff00-\uff65\uffe0-\uffef`;

/**
 * An address in running text. A letter of these scripts belongs to it at the beginning of a part (/wiki/東京), unless it
 * is hiragana, which are the words after the address (/を参照), and then as far as such letters go.
 */
const ADDRESS = new RegExp(
  String.raw`^(?:https?:\/\/|ftp:\/\/|www\.)(?:(?!${CJK_LETTER}|\u30fb)[^${ENDS}]` +
    String.raw`|(?<=[\/=#?&_+%-]|[\/_]\()(?!\p{sc=Hiragana})${CJK_LETTER}|(?<=${CJK_LETTER}|\u30fb)(?:${CJK_LETTER}|\u30fb))+`,
  "iu",
);

/** Characters; a longer address stays text. */
const LONGEST_ADDRESS = 4096;

/**
 * @param {string} source
 * @returns {string | null} the part of `source` in which an address at its beginning lies; null: none, or too long
 */
export function addressIn(source) {
  const found = ADDRESS.exec(source.slice(0, LONGEST_ADDRESS + 1))?.[0];
  return found !== undefined && found.length <= LONGEST_ADDRESS ? found : null;
}

/**
 * Replace characters of these scripts beside delimiters, so that they neither open nor close emphasis by themselves: the
 * characters on the other side of the delimiters decide.
 * @param {string} source in which links and code are masked already
 * @returns {string} of the same length
 */
export function maskBesideDelimiters(source) {
  if (!CJK.test(source)) return source;
  const units = source.split("");
  /** @param {number} start @param {string} character @param {boolean} punctuation */
  const put = (start, character, punctuation) => {
    for (let at = start; at < start + character.length; at += 1) {
      if (punctuation) units[at] = ".";
      else if (units[at] !== ".") units[at] = "a"; // between two runs: the first one closes, the second one opens
    }
  };
  for (const { 0: run, index } of source.matchAll(DELIMITERS)) {
    const end = index + run.length;
    const before = characterBefore(source, index);
    const after = characterAt(source, end);
    if (isBoundary(before) || isBoundary(after)) continue;
    if (CJK.test(before)) put(index - before.length, before, !CJK.test(after) && PUNCTUATION.test(after));
    if (CJK.test(after)) put(end, after, !CJK.test(before) && PUNCTUATION.test(before));
  }
  return units.join("");
}

/**
 * @param {string} source that begins with delimiters
 * @param {string} before the character before them
 * @returns {boolean} whether a character of these scripts stands beside them, so that they open emphasis anywhere
 */
export function opensBesideCjk(source, before) {
  const length = /^(?:\*+|~~)/.exec(source)?.[0].length ?? 0;
  return length > 0 && (CJK.test(before) || CJK.test(characterAt(source, length)));
}

/** @param {string} text */
export function isCjk(text) {
  return CJK.test(text);
}

/** @param {string} character */
function isBoundary(character) {
  return character === "" || SPACE.test(character);
}

/** @param {string} text @param {number} index */
function characterAt(text, index) {
  const point = text.codePointAt(index);
  return point === undefined ? "" : String.fromCodePoint(point);
}

/** @param {string} text @param {number} index */
function characterBefore(text, index) {
  const pair = index > 1 ? characterAt(text, index - 2) : "";
  return pair.length === 2 ? pair : text.slice(Math.max(0, index - 1), index);
}
