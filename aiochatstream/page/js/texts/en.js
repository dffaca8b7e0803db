// English.

const ordinals = new Intl.PluralRules("en", { type: "ordinal" });

/** @type {Record<string, string>} */
const SUFFIX = { one: "st", two: "nd", few: "rd", other: "th" };

/** @param {number} number */
const ordinal = (number) => `${number}${SUFFIX[ordinals.select(number)]}`;

/** @param {number} seconds */
const duration = (seconds) =>
  seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;

export const en = {
  // around the conversation
  skip: "Skip to the message box",
  title: "Chat",
  welcome: "What would you like to talk about?",
  unavailable: "This conversation is no longer available.",
  examples: [
    "Explain in three sentences how a rainbow forms.",
    "Write a Python function that finds the primes below n.",
    "Compare tea and coffee in a table.",
    "Suggest a simple dinner with tomatoes.",
  ],
  conversations: "Conversations",
  new_chat: "New chat",
  untitled: "New chat",
  search: "Search",
  nothing_found: "No conversation title contains these words.",
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
  hint_keys: "Press Enter to send, Shift+Enter for a new line.",
  thinking_level: "Thinking",
  thinking_auto: "Auto",
  thinking_off: "Off",
  thinking_on: "On",
  thinking_low: "Low",
  thinking_medium: "Medium",
  thinking_high: "High",

  // turns
  you: "You",
  assistant: "Assistant",
  waiting: "Waiting for the answer",
  queued: (/** @type {number} */ place) => (place === 1 ? "You are next in line" : `You are ${ordinal(place)} in line`),
  elsewhere: "This answer is being generated in another tab.",
  interrupted: "The answer was interrupted.",
  cut_off: "The answer was cut off at the maximum length.",
  cut_off_thinking:
    "The maximum length was reached while thinking, before the answer. Increase it in the settings, or reduce thinking.",
  thinking: "Thinking",
  thinking_time: (/** @type {number} */ seconds) => `, ${duration(seconds)}`,
  thought_time: (/** @type {number} */ seconds) => `Thought for ${duration(seconds)}`,
  thoughts: "Thoughts",
  complete: "The answer is complete.",
  copy: "Copy",
  copied: "Copied",
  edit: "Edit",
  edit_message: "Edit the message",
  save_send: "Send",
  cancel: "Cancel",
  regenerate: "Regenerate the answer",
  continue: "Continue",
  like: "Good answer",
  dislike: "Bad answer",
  comment: "Add a comment (optional)",
  send_comment: "Send comment",
  thanks: "Thank you.",
  delete: "Delete this message and its answer",
  times: "Tokens and times",
  stats: (/** @type {{ tokens: number, thoughts: number, rate: string | null, first: string, cached: number }} */ s) =>
    [
      `${s.tokens} ${s.tokens === 1 ? "token" : "tokens"}`,
      s.thoughts ? `${s.thoughts} of them for thinking` : "",
      s.rate && `${s.rate} tokens/s`,
      `first token after ${s.first} s`,
      s.cached ? `${s.cached} prompt tokens from the cache` : "",
    ]
      .filter(Boolean)
      .join(" · "),
  code: (/** @type {string} */ language) => `Code${language && `, ${language}`}`,

  // errors
  busy: "The server is busy.",
  starting: "The model is loading.",
  draining: "The server is restarting.",
  upstream_unavailable: "The servers that generate the answers cannot be reached.",
  store_unavailable: "The storage of the conversations cannot be reached.",
  unreachable: "The server cannot be reached.",
  not_answered: "This message was not answered.",
  conversation_busy: "Another answer is still running in this conversation.",
  conversation_changed: "This conversation was changed elsewhere. Check it, then send the message again.",
  answer_elsewhere: "The last answer is on a server that cannot be reached.",
  abandon_lost: "Continue without the lost answer",
  foreign_response: "The response did not come from the chat server. You may need to log in: reload the page.",
  reload: "Reload the page",
  refused: (/** @type {string} */ detail) => `The server refused the request: ${detail}`,
  answer_failed: (/** @type {string} */ detail) => `The answer failed: ${detail}`,
  again_in: (/** @type {number} */ seconds) => `Retrying in ${seconds} s.`,
  send_now: "Send now",
  send_again: "Send again",
  restore: "Back to the message box",
  withdraw: "Do not send",
  no_history: "The conversation cannot be shown right now.",
  try_again: "Try again",
  failed: (/** @type {string} */ detail) => `The action failed: ${detail}`,
  not_a_conversation: "This is not a conversation file.",
  imported: "Conversation imported.",
  imported_system: (/** @type {string} */ text) => `Conversation imported. The file sets the system prompt: ${text}`,
  turns_dropped: "The oldest messages were dropped because the conversation is too long.",
  not_stored: "This message and its answer are too long to be saved. Copy what you need.",
  stream_limit: (/** @type {number} */ streams) =>
    `${streams} answers are running in this browser. This answer starts when one of them ends.`,
  no_cookies: "This page needs cookies. Without them, each message starts a new conversation.",
  memory_only:
    "This browser cannot store data for this page. Drafts, settings and the conversation list are lost when the page closes.",

  // confirmations
  confirm_delete: "Delete this message and its answer?",
  confirm_clear: "Delete all messages of this conversation?",
  confirm_remove: (/** @type {string} */ title) => `Delete the conversation “${title}”?`,
  yes_delete: "Delete",
  yes_clear: "Clear",

  // settings
  system_prompt: "System prompt",
  system_hint: "Instructions for the model in this conversation.",
  parameters: "Parameters",
  parameters_hint: "Apply to your next answers in all conversations.",
  temperature: "Temperature",
  temperature_hint: "0 always selects the most likely token; higher values give more varied answers.",
  top_k_value: "Top k",
  top_k_value_hint: "Sample from this number of the most likely tokens; 0 is off.",
  top_p_value: "Top p",
  top_p_value_hint: "Sample from the most likely tokens whose probabilities add up to this value.",
  max_new_tokens: "Maximum length",
  max_new_tokens_hint: "In tokens.",
  source_user: "yours",
  source_app: "the server’s",
  source_model: "the model’s own",
  source_default: "default",
  defaults: "Reset to the server’s defaults",
  show_times: "Show tokens and times under answers",

  // developer
  dev_prompt: "Prompt",
  dev_load: "Load",
  dev_memory: "Memory",
  dev_events: "Events",
  refresh: "Refresh",
  no_prompt: "No prompt yet.",
  no_events: "Events of the next answer appear here.",
  running: "answers running",
  waiting_now: "requests waiting",
  of: (/** @type {string | number} */ part, /** @type {string | number} */ whole) => `${part} of ${whole}`,
};
