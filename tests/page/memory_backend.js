// A storage in memory, in place of the browser's localStorage.

/** @returns {import("../../aiochatstream/page/js/store.js").Backend} */
export function memoryBackend() {
  /** @type {Map<string, string>} */
  const items = new Map();
  return {
    getItem: (key) => items.get(key) ?? null,
    setItem: (key, value) => void items.set(key, value),
    removeItem: (key) => void items.delete(key),
  };
}
