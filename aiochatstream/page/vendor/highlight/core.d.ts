// What the page uses of the highlighter.
declare const hljs: {
  highlight(code: string, options: { language: string; ignoreIllegals: boolean }): { value: string };
  getLanguage(name: string): object | undefined;
  registerLanguage(name: string, grammar: unknown): void;
};
export default hljs;
