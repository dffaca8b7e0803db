// Markdown in Japanese, Chinese and Korean (CJK). CommonMark and GFM delimit emphasis and addresses by spaces and ASCII
// punctuation; CJK texts have no spaces, and their own punctuation.

/** A CJK character, punctuation and full-width forms included. */
const CJK = /[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Hangul}\p{scx=Bopomofo}\u3000-\u303f\uff00-\uffef]/u;

const PUNCTUATION = /[\p{P}\p{S}]/u;

const SPACE = /\s/;

/** Delimiter runs that may open or close emphasis within a word. */
const DELIMITERS = /\*+|~~/g;

const LETTER = String.raw`(?!\p{scx=Han}\p{P})[\p{L}\p{M}\p{N}]`;
const CJK_LETTER = String.raw`(?:(?=[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Hangul}\p{scx=Bopomofo}])${LETTER})`;

/** Characters that end an address: spaces, full-width forms, non-ASCII punctuation. */
const ENDS = String.raw`\s<\u2010-\u2027\u2030-\u205e\u3000-\u3004\u3008-\u3020\u3030\uff00-\uff65\uffe0-\uffef`;

/**
 * An address in running text. It includes CJK letters at the start of a path segment (/wiki/東京), except hiragana, which
 * belong to the sentence (/を参照).
 */
const ADDRESS = new RegExp(
  String.raw`^(?:https?:\/\/|ftp:\/\/|www\.)(?:(?!${CJK_LETTER}|\u30fb)[^${ENDS}]` +
    String.raw`|(?<=[\/=#?&_+%-]|[\/_]\()(?!\p{sc=Hiragana})${CJK_LETTER}|(?<=${CJK_LETTER}|\u30fb)(?:${CJK_LETTER}|\u30fb))+`,
  "iu",
);

/** Maximum length of an address in characters; a longer address remains text. */
const MAX_ADDRESS_LENGTH = 4096;

/**
 * Return the address at the start of `source`.
 * @param {string} source
 * @returns {string | null} null: no address, or too long
 */
export function addressAt(source) {
  const address = ADDRESS.exec(source.slice(0, MAX_ADDRESS_LENGTH + 1))?.[0];
  return address !== undefined && address.length <= MAX_ADDRESS_LENGTH ? address : null;
}

/**
 * Mask CJK characters beside delimiter runs, so that only the characters on the other side of a run determine whether it
 * opens or closes emphasis.
 * @param {string} source links and code are already masked
 * @returns {string} a text of the same length
 */
export function maskBesideDelimiters(source) {
  if (!CJK.test(source)) return source;
  const units = source.split("");
  /** @param {number} start @param {string} character @param {boolean} punctuation */
  const mask = (start, character, punctuation) => {
    for (let index = start; index < start + character.length; index += 1) {
      if (punctuation) units[index] = ".";
      else if (units[index] !== ".") units[index] = "a"; // between two runs: the first closes, the second opens
    }
  };
  for (const { 0: run, index } of source.matchAll(DELIMITERS)) {
    const end = index + run.length;
    const before = characterBefore(source, index);
    const after = characterAt(source, end);
    if (isBoundary(before) || isBoundary(after)) continue;
    if (CJK.test(before)) mask(index - before.length, before, !CJK.test(after) && PUNCTUATION.test(after));
    if (CJK.test(after)) mask(end, after, !CJK.test(before) && PUNCTUATION.test(before));
  }
  return units.join("");
}

/**
 * Return whether the delimiter run at the start of `source` is beside a CJK character, so that it may open emphasis.
 * @param {string} source
 * @param {string} before the character before the run
 */
export function opensBesideCjk(source, before) {
  const length = /^(?:\*+|~~)/.exec(source)?.[0].length ?? 0;
  return length > 0 && (CJK.test(before) || CJK.test(characterAt(source, length)));
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
