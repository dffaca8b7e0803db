// The limit on streams. Over HTTP/1.1 a browser has six connections to a server, for all its tabs: streams leave two of
// them to everything else.

/** Streams at once: of the whole browser, or of each tab where the browser has no Web Locks (plain HTTP from elsewhere). */
export const SLOTS = 4;

/** Milliseconds after which a stream counts as waiting. */
const CROWDED_MS = 300;

/** @typedef {{ request(name: string, options: { signal: AbortSignal }, onGrant: () => unknown): Promise<unknown> }} Locks */

/** Locks of this tab alone. */
class TabLocks {
  /** @type {Map<string, Promise<unknown>>} the end of each lock's queue */
  #ends = new Map();

  /** @type {Locks["request"]} */
  request(name, { signal }, onGrant) {
    const turn = (this.#ends.get(name) ?? Promise.resolve()).then(() => {
      signal.throwIfAborted();
      return onGrant();
    });
    this.#ends.set(name, turn.catch(() => {}));
    return turn;
  }
}

const tabLocks = new TabLocks();

/**
 * Wait until one more stream may run. Raises the reason of `signal` if that is aborted first.
 * @param {AbortSignal} signal
 * @param {() => void} crowded called if it takes a while
 * @param {Locks} [locks] for tests
 * @returns {Promise<() => void>} ends the stream's hold; calling it again has no effect
 */
export async function streamSlot(signal, crowded, locks = globalThis.navigator?.locks ?? tabLocks) {
  signal.throwIfAborted();
  const timer = setTimeout(crowded, CROWDED_MS);
  try {
    return await anyOf(locks, signal);
  } catch (error) {
    if (signal.aborted) throw signal.reason;
    return await anyOf(tabLocks, signal); // the browser forbids locks where it forbids cookies
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
    let holds = false;
    const onGrant = () => {
      if (holds || signal.aborted) return undefined;
      holds = true;
      others.abort();
      return new Promise((release) => resolve(() => release(undefined)));
    };
    const leave = () => {
      others.abort();
      reject(signal.reason);
    };
    signal.addEventListener("abort", leave, { once: true });
    for (let slot = 0; slot < SLOTS; slot += 1) {
      locks.request(`aiochatstream stream ${slot}`, { signal: others.signal }, onGrant).catch(reject);
    }
  });
}
