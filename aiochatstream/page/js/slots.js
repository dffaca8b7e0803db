// The limit on concurrent streams. Over HTTP/1.1 a browser opens at most six connections to a server, shared by all tabs:
// the limit leaves two for other requests.

/** Maximum number of streams per browser, or per tab without Web Locks (plain HTTP from another machine). */
export const MAX_STREAMS = 4;

/** Milliseconds after which a waiting stream is reported. */
const REPORT_MS = 300;

/** @typedef {{ request(name: string, options: { signal: AbortSignal }, onGrant: () => unknown): Promise<unknown> }} Locks */

/** Locks within this tab. */
class TabLocks {
  /** @type {Map<string, Promise<unknown>>} the last request for each lock */
  #tails = new Map();

  /** @type {Locks["request"]} */
  request(name, { signal }, onGrant) {
    const grant = (this.#tails.get(name) ?? Promise.resolve()).then(() => {
      signal.throwIfAborted();
      return onGrant();
    });
    this.#tails.set(name, grant.catch(() => {}));
    return grant;
  }
}

const tabLocks = new TabLocks();

/**
 * Wait until a stream may start. Raises the reason of `signal` if that is aborted first.
 * @param {AbortSignal} signal
 * @param {() => void} onWait called after REPORT_MS
 * @param {Locks} [locks] for tests
 * @returns {Promise<() => void>} a function that releases the slot; further calls have no effect
 */
export async function acquireSlot(signal, onWait, locks = globalThis.navigator?.locks ?? tabLocks) {
  signal.throwIfAborted();
  const timer = setTimeout(onWait, REPORT_MS);
  try {
    return await anyOf(locks, signal);
  } catch (error) {
    if (signal.aborted) throw signal.reason;
    return await anyOf(tabLocks, signal); // a browser that blocks cookies also blocks locks
  } finally {
    clearTimeout(timer);
  }
}

/**
 * @param {Locks} locks
 * @param {AbortSignal} signal
 * @returns {Promise<() => void>}
 */
function anyOf(locks, signal) {
  const others = new AbortController();
  return new Promise((resolve, reject) => {
    let acquired = false;
    const onGrant = () => {
      if (acquired || signal.aborted) return undefined;
      acquired = true;
      others.abort();
      return new Promise((release) => resolve(() => release(undefined)));
    };
    const cancel = () => {
      others.abort();
      reject(signal.reason);
    };
    signal.addEventListener("abort", cancel, { once: true });
    for (let slot = 0; slot < MAX_STREAMS; slot += 1) {
      locks.request(`aiochatstream stream ${slot}`, { signal: others.signal }, onGrant).catch(reject);
    }
  });
}
