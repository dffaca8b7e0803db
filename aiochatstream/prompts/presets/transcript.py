"""Models that go on with a transcript: ``speaker: text``, one message after the other."""

from __future__ import annotations

from aiochatstream.prompts.base import AbstractChatPrompt


class TranscriptPrompt(AbstractChatPrompt):
    """``requester: text``, ``responder: text``; a system text stands before them."""

    separator: str = "\n"
    """Stands between messages."""

    opening: str = ":"
    """Follows the responder's name where the model is to go on, and the requester's where it writes too much."""

    def create_prompt(self) -> str:
        """The transcript, up to the open answer."""
        lines = [self.replace_input(self.system)] if self.system else []
        for role, message in self.get_contents():
            if message is None:
                lines.append(f"{role}{self.opening}")
            else:  # an answer that a stop string ended has the separator that came before it at its end
                lines.append(f"{role}: {message.strip().removesuffix(self.separator)}")
        return self.separator.join(lines)

    def get_stop_strs(self) -> list[str]:
        """The requester's name, where the model begins to write the user's part."""
        return [f"{self.requester}{self.opening}"]


class ChatPromptTogetherRedPajamaINCITEChat(TranscriptPrompt):
    """RedPajama-INCITE-Chat by Together: ``<human>: ...`` and ``<bot>: ...``."""

    requester = "<human>"
    responder = "<bot>"

    def get_stop_strs(self) -> list[str]:
        """The requester's name, and the text of the EOS."""
        return [*super().get_stop_strs(), "<|endoftext|>"]


class ChatPromptRinnaJpGptNeoxInstSft(TranscriptPrompt):
    """Instruction-tuned japanese-gpt-neox-3.6b by rinna.

    Its tokenizer knows no newline: every one is written ``<NL>``, within messages and between them. The model card
    encodes without special tokens, because the tokenizer would end the prompt with an EOS.
    """

    requester = "ユーザー"
    responder = "システム"
    separator = "<NL>"
    opening = ": "
    add_special_tokens = False

    def get_replacement_when_input(self) -> list[tuple[str, str]]:
        """Newlines as the tokenizer knows them, those of Windows, too."""
        return [("\r\n", "<NL>"), ("\n", "<NL>")]

    def get_replacement_when_output(self) -> list[tuple[str, str]]:
        """Newlines as people read them."""
        return [("<NL>", "\n")]


class ChatPromptLineCorpJpLargeLmInstSft(TranscriptPrompt):
    """Instruction-tuned japanese-large-lm by LINE. Encoded without special tokens."""

    requester = "ユーザー"
    responder = "システム"
    opening = ": "
    add_special_tokens = False


class ChatPromptOpenlmrOpenLlama(TranscriptPrompt):
    """OpenLLaMA by OpenLM Research: a base model that takes ``Q: ...`` and ``A: ...`` well."""

    requester = "Q"
    responder = "A"

    def get_stop_strs(self) -> list[str]:
        """The next question, and the other names that the model makes up."""
        return [f"\n{self.requester}:", "\nB:", "\nC:"]
