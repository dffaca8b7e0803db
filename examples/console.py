"""A chat in the terminal, without a server: python examples/console.py. (See also `aiochatstream chat`.)"""

import asyncio

from simple_server import model, tokenizer

from aiochatstream import ChatStream, GenerationParams, LoadTime


async def main():
    small_model = LoadTime(name="the small model", fn=model)()
    async with ChatStream(
        model=small_model, tokenizer=tokenizer, params=GenerationParams(temperature=0.2, top_p=0.7)
    ) as chat_stream:
        while text := (await asyncio.to_thread(input, "you: ")).strip():
            async for _, new_text, pos in chat_stream.handle_console_input(text):
                print(new_text, end="\n" if pos == "end" else "", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
