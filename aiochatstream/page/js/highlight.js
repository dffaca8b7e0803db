// Syntax highlighting. The highlighter and its grammars are loaded when they are first needed.

import { sanitize } from "./sanitize.js";

/** @type {Record<string, string>} names in info strings, to the grammar's module */
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

/** @type {Map<string, Promise<boolean>>} grammars by language; a failed load is not repeated */
const grammarLoads = new Map();

/** @type {Promise<any> | null} */
let coreLoad = null;

/**
 * @param {string} label the language in the fence's info string
 * @param {string} text
 * @param {() => void} onLoad called once, if the language has to be loaded first
 * @returns {DocumentFragment | null} null if the language is unknown or not loaded yet
 */
export function highlight(label, text, onLoad) {
  const name = label.toLowerCase();
  const language = Object.hasOwn(LANGUAGES, name) ? LANGUAGES[name] : undefined;
  if (!language) return null;
  if (core?.getLanguage(language)) {
    return sanitize(core.highlight(text, { language, ignoreIllegals: true }).value);
  }
  const load = grammarLoads.get(language) ?? loadGrammar(language);
  grammarLoads.set(language, load);
  void load.then((success) => success && onLoad());
  return null;
}

/** @param {string} language @returns {Promise<boolean>} */
async function loadGrammar(language) {
  try {
    coreLoad ??= import("../vendor/highlight/core.js");
    const [{ default: hljs }, { default: grammar }] = await Promise.all([
      coreLoad,
      import(`../vendor/highlight/${language}.js`),
    ]);
    hljs.registerLanguage(language, grammar);
    core = hljs;
    return true;
  } catch {
    return false;
  }
}
