// English.

const ordinals = new Intl.PluralRules("en", { type: "ordinal" });

/** @type {Record<string, string>} */
const SUFFIX = { one: "st", two: "nd", few: "rd", other: "th" };

/** @param {number} number */
const ordinal = (number) => `${number}${SUFFIX[ordinals.select(number)]}`;

export const en = {
  // around the conversation
  skip: "Skip to the message box",
  title: "Chat",
  welcome: "What would you like to talk about?",
  gone: "Nothing of this conversation is kept any more.",
  examples: [
    "Explain how a rainbow comes about, in three sentences.",
    "Write a Python function that finds the primes below n.",
    "Compare tea and coffee in a table.",
    "Suggest a simple dinner with tomatoes.",
  ],
  conversations: "Conversations",
  new_chat: "New chat",
  untitled: "New chat",
  search: "Search",
  nothing_found: "No conversation has these words in its title.",
  import: "Import a conversation",
  export: "Export the conversation",
  rename: "Rename",
  remove: "Delete the conversation",
  close: "Close",
  language: "Language",
  theme: "Theme",
  theme_system: "System",
  theme_light: "Light",
  theme_dark: "Dark",
  settings: "Settings",
  dev: "Developer",
  clear: "Clear the conversation",
  messages: "Messages",
  latest: "Go to the newest message",

  // the message box
  message: "Message",
  placeholder: "Write a message",
  send: "Send",
  stop: "Stop",
  hint_keys: "Enter sends, Shift+Enter begins a new line.",

  // turns
  you: "You",
  assistant: "Assistant",
  waiting: "Waiting for the answer",
  queued: (/** @type {number} */ place) => (place === 1 ? "You are next in line" : `You are ${ordinal(place)} in line`),
  elsewhere: "This answer is being written for another tab.",
  interrupted: "The answer was interrupted.",
  cut: "The answer reached its greatest length.",
  answered: "The answer is complete.",
  copy: "Copy",
  copied: "Copied",
  edit: "Edit",
  edit_message: "Edit the message",
  save_send: "Send",
  cancel: "Cancel",
  regenerate: "Answer again",
  continue: "Continue",
  like: "Good answer",
  dislike: "Bad answer",
  comment: "What was it about? (not required)",
  send_comment: "Send comment",
  thanks: "Thank you.",
  delete: "Delete this message and its answer",
  times: "Tokens and times",
  stats: (/** @type {{ tokens: number, rate: string | null, first: string, cached: number }} */ s) =>
    [
      `${s.tokens} ${s.tokens === 1 ? "token" : "tokens"}`,
      s.rate && `${s.rate} tokens/s`,
      `first after ${s.first} s`,
      s.cached ? `${s.cached} prompt tokens from the cache` : "",
    ]
      .filter(Boolean)
      .join(" · "),
  code: (/** @type {string} */ language) => `Code${language && `, ${language}`}`,

  // what goes wrong
  busy: "Many people are asking right now.",
  starting: "The model is being loaded.",
  draining: "The server is restarting.",
  store_unavailable: "The conversations cannot be reached right now.",
  unreachable: "The server cannot be reached.",
  not_answered: "This message was not answered.",
  conversation_busy: "Another answer of this conversation is being written.",
  conversation_changed: "This conversation was changed elsewhere. Have a look, then send again.",
  answer_elsewhere: "The last answer is held by a server that cannot be reached.",
  abandon_lost: "Go on without the lost answer",
  not_ours: "The response did not come from the chat server. You may need to log in: reload the page.",
  reload: "Reload the page",
  refused: (/** @type {string} */ detail) => `The server did not take this: ${detail}`,
  broke: (/** @type {string} */ detail) => `The answer broke off: ${detail}`,
  again_in: (/** @type {number} */ seconds) => `Retrying in ${seconds} s.`,
  send_now: "Send now",
  send_again: "Send again",
  back_to_box: "Back to the message box",
  give_up: "Do not send",
  no_history: "The conversation cannot be shown right now.",
  try_again: "Try again",
  failed: (/** @type {string} */ detail) => `That did not work: ${detail}`,
  not_a_conversation: "This file holds no conversation.",
  imported: "The conversation is here.",
  imported_system: (/** @type {string} */ text) => `The conversation is here. Its file sets the system prompt: ${text}`,
  dropped: "The oldest messages were left out, because the conversation grew too long.",
  unkept: "This message and its answer are too long to be kept. Copy what you need.",
  crowded: (/** @type {number} */ streams) =>
    `${streams} answers are running in this browser. This one starts when one of them ends.`,
  cookieless: "This page needs cookies. Without them, each message starts a new conversation.",
  forgetful: "This browser cannot store data for this page. Drafts, settings and the list are lost when the page closes.",

  // asking first
  confirm_delete: "Delete this message and its answer?",
  confirm_clear: "Forget everything that was said in this conversation?",
  confirm_remove: (/** @type {string} */ title) => `Delete the conversation “${title}”?`,
  yes_delete: "Delete",
  yes_clear: "Clear",

  // settings
  system_prompt: "System prompt",
  system_hint: "What the model is told before this conversation.",
  parameters: "Parameters",
  parameters_hint: "For your next answers in all conversations.",
  temperature: "Temperature",
  temperature_hint: "0 takes the likeliest words, more is more varied.",
  top_k_value: "Top k",
  top_k_value_hint: "Draw from so many of the likeliest tokens; 0 is off.",
  top_p_value: "Top p",
  top_p_value_hint: "Draw from the likeliest tokens that reach this probability.",
  max_new_tokens: "Longest answer",
  max_new_tokens_hint: "In tokens.",
  defaults: "Back to the server’s own",
  show_times: "Show tokens and times under answers",

  // developer
  dev_prompt: "Prompt",
  dev_load: "Load",
  dev_memory: "Memory",
  dev_events: "Events",
  refresh: "Refresh",
  no_prompt: "There is no prompt yet.",
  no_events: "Events of the next answer appear here.",
  running: "answers running",
  waiting_now: "requests waiting",
  of: (/** @type {string | number} */ part, /** @type {string | number} */ whole) => `${part} of ${whole}`,
};
