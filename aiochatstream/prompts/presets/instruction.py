"""Models tuned on instructions in the manner of Alpaca: each part under a heading."""

from __future__ import annotations

from aiochatstream.prompts.base import AbstractChatPrompt


class InstructionPrompt(AbstractChatPrompt):
    """The system text, then each message under its heading, which is the requester's or the responder's name."""

    opening: str = ""
    """The heading where the model is to go on."""

    ending: str = ""
    """Follows each answer."""

    def create_prompt(self) -> str:
        """The parts with an empty line between, up to the open answer."""
        parts = [self.replace_input(self.system)] if self.system else []
        for role, message in self.get_contents():
            if message is None:
                parts.append(self.opening)
            else:
                ending = self.ending if role == self.responder else ""
                parts.append(f"{role}\n{message.strip()}{ending}")
        return "\n\n".join(parts)

    def get_stop_strs(self) -> list[str]:
        """The heading of the next instruction."""
        return [self.requester]


class ChatPromptStabilityAiJpGptNeoxInstSft(InstructionPrompt):
    """japanese-stablelm-instruct-alpha-7b by Stability AI.

    An input that the instruction speaks of is a part of the message: ``instruction\\n\\n### 入力: \\ninput``. Encoded
    without special tokens, as on the model card.
    """

    system = "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。"
    requester = "### 指示: "
    responder = "### 応答: "
    opening = "### 応答: "
    add_special_tokens = False


class ChatPromptMatsuoLabJpGptNeoxInstSft(InstructionPrompt):
    """weblab-10b-instruction-sft by the Matsuo lab: single turn.

    The model card's format is taken: no space after the colons, and a system text that speaks of no input. Encoded
    without special tokens, as on the card.
    """

    system = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
    requester = "### 指示:"
    responder = "### 応答:"
    opening = "### 応答:"
    chat_mode_enabled = False
    add_special_tokens = False

    def get_stop_strs(self) -> list[str]:
        """The heading of the next instruction, and of a question."""
        return [*super().get_stop_strs(), "Q:"]


class ChatPromptDatabricksDolly(InstructionPrompt):
    """dolly-v2 by Databricks. ``### End`` closes each answer, as in its training."""

    system = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    requester = "### Instruction:"
    responder = "### Response:"
    opening = "### Response:\n"
    ending = "\n\n### End"

    def get_stop_strs(self) -> list[str]:
        """The heading of the next instruction, and the end of the answer."""
        return [f"{self.requester}\n", "### End"]
