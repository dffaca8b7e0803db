// Colours for code. The highlighter and each language are fetched when the first code in it appears.

import { sanitized } from "./sanitize.js";

/** @type {Record<string, string>} what fences say, to the module of the language */
const LANGUAGES = {
  bash: "bash", sh: "bash", shell: "bash", zsh: "bash", console: "bash",
  c: "cpp", "c++": "cpp", cc: "cpp", cpp: "cpp", h: "cpp",
  css: "css",
  diff: "diff", patch: "diff",
  go: "go", golang: "go",
  java: "java",
  javascript: "javascript", js: "javascript", jsx: "javascript", mjs: "javascript",
  json: "json",
  markdown: "markdown", md: "markdown",
  py: "python", python: "python", python3: "python",
  rs: "rust", rust: "rust",
  sql: "sql",
  ts: "typescript", tsx: "typescript", typescript: "typescript",
  html: "xml", svg: "xml", xml: "xml",
  yaml: "yaml", yml: "yaml",
};

/** @type {any} */
let core = null;

/** @type {Map<string, Promise<boolean>>} the languages that were asked for; those that failed are not asked for again */
const coming = new Map();

/** @type {Promise<any> | null} */
let coreComing = null;

/**
 * @param {string} said the language, as the fence says it
 * @param {string} text
 * @param {() => void} whenReady called once, where it has to be fetched first
 * @returns {DocumentFragment | null} null: not yet, or not in this language
 */
export function highlight(said, text, whenReady) {
  const name = said.toLowerCase();
  const language = Object.hasOwn(LANGUAGES, name) ? LANGUAGES[name] : undefined;
  if (!language) return null;
  if (core?.getLanguage(language)) {
    return sanitized(core.highlight(text, { language, ignoreIllegals: true }).value);
  }
  const ready = coming.get(language) ?? fetchLanguage(language);
  coming.set(language, ready);
  void ready.then((there) => there && whenReady());
  return null;
}

/** @param {string} language */
async function fetchLanguage(language) {
  try {
    coreComing ??= import("../vendor/highlight/core.js");
    const [{ default: hljs }, { default: grammar }] = await Promise.all([
      coreComing,
      import(`../vendor/highlight/${language}.js`),
    ]);
    hljs.registerLanguage(language, grammar);
    core = hljs;
    return true;
  } catch {
    return false;
  }
}
