"""Models that continue a transcript of lines ``speaker: text``."""

from __future__ import annotations

from aiochatstream.prompts.base import AbstractChatPrompt


class TranscriptPrompt(AbstractChatPrompt):
    """The system prompt, then ``requester: text`` and ``responder: text`` in turn."""

    separator: str = "\n"
    """Separator of messages."""

    opening: str = ":"
    """Text after the responder's name before the answer to generate, and after the requester's name in stop strings."""

    def create_prompt(self) -> str:
        """Return the transcript, up to the answer to generate."""
        lines = [self.replace_input(self.system)] if self.system else []
        for role, message in self.get_contents():
            if message is None:
                lines.append(f"{role}{self.opening}")
            else:  # an answer that a stop string ended still ends with the separator
                lines.append(f"{role}: {message.strip().removesuffix(self.separator)}")
        return self.separator.join(lines)

    def get_stop_strs(self) -> list[str]:
        """Return the requester's name, which begins the user's part."""
        return [f"{self.requester}{self.opening}"]


class PlainPrompt(TranscriptPrompt):
    """A transcript for base models: ``User: ...`` and ``Assistant: ...``."""

    requester = "User"
    responder = "Assistant"

    def get_stop_strs(self) -> list[str]:
        """Return the next line of the user, and of a new conversation."""
        return ["\nUser:", "\nAssistant:"]


class ChatPromptTogetherRedPajamaINCITEChat(TranscriptPrompt):
    """RedPajama-INCITE-Chat by Together: ``<human>: ...`` and ``<bot>: ...``."""

    requester = "<human>"
    responder = "<bot>"

    def get_stop_strs(self) -> list[str]:
        """Return the requester's name, and the text of the EOS."""
        return [*super().get_stop_strs(), "<|endoftext|>"]


class ChatPromptRinnaJpGptNeoxInstSft(TranscriptPrompt):
    """Instruction-tuned japanese-gpt-neox-3.6b by rinna.

    Its tokenizer has no newline: ``<NL>`` replaces it, within messages and between them. As on the model card, prompts
    are encoded without special tokens: the tokenizer would append an EOS.
    """

    requester = "ユーザー"
    responder = "システム"
    separator = "<NL>"
    opening = ": "
    add_special_tokens = False

    def get_replacement_when_input(self) -> list[tuple[str, str]]:
        """Replace newlines, including Windows line endings, by ``<NL>``."""
        return [("\r\n", "<NL>"), ("\n", "<NL>")]

    def get_replacement_when_output(self) -> list[tuple[str, str]]:
        """Replace ``<NL>`` by newlines."""
        return [("<NL>", "\n")]


class ChatPromptLineCorpJpLargeLmInstSft(TranscriptPrompt):
    """Instruction-tuned japanese-large-lm by LINE. Encoded without special tokens."""

    requester = "ユーザー"
    responder = "システム"
    opening = ": "
    add_special_tokens = False


class ChatPromptOpenlmrOpenLlama(TranscriptPrompt):
    """OpenLLaMA by OpenLM Research: a base model that continues ``Q: ...`` and ``A: ...`` well."""

    requester = "Q"
    responder = "A"

    def get_stop_strs(self) -> list[str]:
        """Return the next question, and other names that the model invents."""
        return [f"\n{self.requester}:", "\nB:", "\nC:"]
