/**
 * An answer as the AI SDK sees it, as JSON: node ai_sdk.mjs BASE_URL MODEL MESSAGE stream|whole [TOOL]
 *
 * TOOL is an OpenAI function tool as JSON.
 */

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, streamText, tool } from "ai";

const [baseURL, model, prompt, mode, toolText] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "aiochatstream", baseURL, apiKey: "none", includeUsage: true });
const offered = toolText ? JSON.parse(toolText).function : null;
const tools = offered ? { [offered.name]: tool({ inputSchema: jsonSchema(offered.parameters) }) } : undefined;
const options = { model: provider(model), prompt, tools, maxRetries: 0 };

const answer = mode === "stream" ? streamText(options) : await generateText(options);
const calls = await answer.toolCalls;
const usage = await answer.usage;
console.log(
  JSON.stringify({
    reasoning: await answer.reasoningText,
    text: await answer.text,
    calls: calls.map((call) => ({ name: call.toolName, arguments: call.input })),
    finishReason: await answer.finishReason,
    reasoningTokens: usage.outputTokenDetails?.reasoningTokens,
  }),
);
