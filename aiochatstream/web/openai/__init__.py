"""OpenAI's API, without sessions: https://platform.openai.com/docs/api-reference."""
