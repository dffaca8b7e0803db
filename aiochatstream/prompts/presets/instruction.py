"""Models tuned on instructions in Alpaca's format: each part under a heading."""

from __future__ import annotations

from aiochatstream.prompts.base import AbstractChatPrompt


class InstructionPrompt(AbstractChatPrompt):
    """The system prompt, then each message under a heading, the requester's or the responder's name."""

    opening: str = ""
    """Heading of the answer to generate."""

    ending: str = ""
    """Text after each answer."""

    def create_prompt(self) -> str:
        """Return the parts, separated by empty lines, up to the answer to generate."""
        parts = [self.replace_input(self.system)] if self.system else []
        for role, message in self.get_contents():
            if message is None:
                parts.append(self.opening if role == self.responder else f"{role}\n")
            else:
                ending = self.ending if role == self.responder else ""
                parts.append(f"{role}\n{message.strip()}{ending}")
        return "\n\n".join(parts)

    def get_stop_strs(self) -> list[str]:
        """Return the heading of the next instruction."""
        return [self.requester]


class ChatPromptStabilityAiJpGptNeoxInstSft(InstructionPrompt):
    """japanese-stablelm-instruct-alpha-7b by Stability AI.

    A message may contain the input of its instruction: ``instruction\\n\\n### 入力: \\ninput``. Encoded without special
    tokens, as on the model card.
    """

    system = "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。"
    requester = "### 指示: "
    responder = "### 応答: "
    opening = "### 応答: "
    add_special_tokens = False


class ChatPromptMatsuoLabJpGptNeoxInstSft(InstructionPrompt):
    """weblab-10b-instruction-sft by the Matsuo lab: single turn.

    The format follows the model card: no space after the colons, and a system prompt that does not mention an input.
    Encoded without special tokens, as on the card.
    """

    system = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
    requester = "### 指示:"
    responder = "### 応答:"
    opening = "### 応答:"
    chat_mode_enabled = False
    add_special_tokens = False

    def get_stop_strs(self) -> list[str]:
        """Return the headings of the next instruction and of a question."""
        return [*super().get_stop_strs(), "Q:"]


class ChatPromptDatabricksDolly(InstructionPrompt):
    """dolly-v2 by Databricks. ``### End`` follows each answer, as in its training data."""

    system = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    requester = "### Instruction:"
    responder = "### Response:"
    opening = "### Response:\n"
    ending = "\n\n### End"

    def get_stop_strs(self) -> list[str]:
        """Return the heading of the next instruction, and the end of the answer."""
        return [f"{self.requester}\n", "### End"]
