"""Tests for answers that break off on one upstream and continue on another."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from aiochatstream import GenerationParams, Prompt
from aiochatstream.errors import UpstreamFailed
from tests.engines.upstream.engines import (
    GREEDY,
    MESSAGES,
    PROMPT,
    WORDS,
    CollectedAnswer,
    collect,
    servers_of,
    two_upstreams,
)
from tests.fake_answers import Prompt as FakePrompt
from tests.fake_answers import answer_text, prompt_ids
from tests.fake_faults import Fault

TEXT = "Once upon a time"
IDS = [3, 1, 4, 1, 5]


class Mode(NamedTuple):
    """A kind of prompt on a kind of server."""

    owner: str
    prompt: Prompt
    fake_prompt: FakePrompt

    def __str__(self) -> str:
        kind = "ids" if self.prompt.token_ids else "messages" if self.prompt.chat else "text"
        return f"{self.owner}-{kind}"


TEXT_PROMPT = Prompt([{"role": "user", "content": TEXT}], [], continued=True, chat=False)
MODES = (
    Mode("vllm", PROMPT, MESSAGES),
    Mode("sglang", PROMPT, MESSAGES),
    Mode("aiochatstream", PROMPT, MESSAGES),
    Mode("llamacpp", PROMPT, MESSAGES),
    Mode("vllm", Prompt(MESSAGES, IDS), IDS),
    Mode("aiochatstream", Prompt(MESSAGES, IDS), IDS),
    Mode("vllm", TEXT_PROMPT, TEXT),
    Mode("somebody", TEXT_PROMPT, TEXT),
)


@pytest.mark.parametrize("words", range(1, WORDS + 1))
@pytest.mark.parametrize("mode", MODES, ids=str)
async def test_an_answer_that_is_cut_at_any_token_is_whole_and_exact(mode: Mode, words: int) -> None:
    async with two_upstreams(Fault("reset", words=words), owner=mode.owner) as both:
        answer = await collect(both.engine, mode.prompt)
        assert (both.requests, both.outages) == (2, 1)
        assert both.first.misfits == both.second.misfits == 0
    assert answer.text == answer_text(mode.fake_prompt, WORDS)
    assert answer.usage == (len(prompt_ids(mode.fake_prompt)), WORDS)
    assert answer.finish_reasons == ["stop"]


@pytest.mark.parametrize("mode", MODES, ids=str)
async def test_an_answer_survives_the_death_of_a_server_at_each_token(mode: Mode) -> None:
    async with two_upstreams(Fault("reset", words=1, times=WORDS - 1), owner=mode.owner, tries=1 + 1) as both:
        answer = await collect(both.engine, mode.prompt)
        assert both.requests == WORDS
    assert answer.text == answer_text(mode.fake_prompt, WORDS)
    assert answer.usage == (len(prompt_ids(mode.fake_prompt)), WORDS)


@pytest.mark.parametrize("words", range(1, 6))
async def test_the_maximum_length_counts_from_the_first_token(words: int) -> None:
    async with two_upstreams(Fault("reset", words=words)) as both:
        answer = await collect(both.engine, params=GenerationParams(max_new_tokens=5))
    assert answer.text == answer_text(MESSAGES, WORDS)[: len(answer.text)]
    assert (answer.usage[1], answer.finish_reasons) == (5, ["length"])
    assert both.requests == (2 if words < 5 else 1)  # nothing is left to generate


async def test_a_thought_that_has_ended_goes_with_the_answer() -> None:
    async with two_upstreams(Fault("reset", words=6)) as both:
        both.first.settings.reasoning = both.second.settings.reasoning = 3
        answer = await collect(both.engine)
        resumed = next(server for server in (both.first, both.second) if "assistant" in str(server.requests))
    message = resumed.requests[-1].body["messages"][-1]
    assert message == {
        "role": "assistant",
        "content": answer_text(MESSAGES, WORDS)[: len(message["content"])],
        "reasoning_content": answer.thinking,
    }
    assert answer.text == answer_text(MESSAGES, WORDS)
    assert answer.usage[1] == WORDS + 3


async def test_a_thought_goes_on_where_the_server_continues_thoughts() -> None:
    async with two_upstreams(Fault("reset", words=4), owner="aiochatstream") as both:
        both.first.settings.reasoning = both.second.settings.reasoning = 9
        answer = await collect(both.engine)
        requests = both.first.requests + both.second.requests
        resumed = next(request.body for request in requests if request.body["messages"][-1]["role"] == "assistant")
    message = resumed["messages"][-1]
    assert (message["content"], resumed["continue_final_message"]) == ("", True)
    assert len(message["reasoning_content"].split(" ")) == 4
    assert answer.thinking.startswith(message["reasoning_content"])
    assert answer.text == answer_text(MESSAGES, WORDS)


async def test_a_stop_string_that_one_server_begins_and_another_completes() -> None:
    text = answer_text(TEXT, WORDS)
    words = text.split(" ")
    stop = f"{words[4][-1]} {words[5][:2]}"
    params = GenerationParams(stop=("no", "ne", "of", "them.", stop))  # the servers know the first four only
    async with two_upstreams(Fault("reset", words=5), owner="somebody") as both:
        answer = await collect(both.engine, TEXT_PROMPT, params)
        assert both.requests == 2
    assert answer.text == text[: text.find(stop)]
    assert answer.finish_reasons == ["stop"]


@pytest.mark.parametrize(
    ("owner", "params", "options", "reasoning"),
    [
        ("somebody", GREEDY, {}, 0),
        ("vllm", GREEDY, {"resume": False}, 0),
        ("vllm", GenerationParams(presence_penalty=0.5), {}, 0),
        ("vllm", GenerationParams(frequency_penalty=-0.5), {}, 0),
        ("vllm", GREEDY, {}, 9),  # within a thought
    ],
    ids=["plain server", "resume=False", "presence penalty", "frequency penalty", "thought"],
)
async def test_an_answer_that_cannot_be_resumed_breaks_off(
    owner: str, params: GenerationParams, options: dict[str, Any], reasoning: int
) -> None:
    answer = CollectedAnswer()
    async with two_upstreams(Fault("reset", words=5), owner=owner, **options) as both:
        both.first.settings.reasoning = both.second.settings.reasoning = reasoning
        with pytest.raises(UpstreamFailed, match="broke off"):
            await collect(both.engine, params=params, answer=answer)
        assert both.requests == 1
    words = answer.thinking if reasoning else answer.text
    assert len(words.split(" ")) == 5
    assert answer.finish_reasons == []


async def test_a_resumed_answer_waits_for_a_busy_server_and_ignores_its_slots() -> None:
    faults = (Fault("reset", words=4), Fault("busy_retry_after", match='"assistant"', times=2))
    async with two_upstreams(*faults, slots=1) as both:
        answer = await collect(both.engine)
        assert both.requests == 4
    assert answer.text == answer_text(MESSAGES, WORDS)


@pytest.mark.parametrize("kind", ["too_long_vllm", "bad_request", "unauthorized"])
async def test_a_refused_resumption_breaks_off(kind: str) -> None:
    answer = CollectedAnswer()
    async with two_upstreams(Fault("reset", words=4), Fault(kind, match='"assistant"')) as both:
        with pytest.raises(UpstreamFailed, match="broke off"):
            await collect(both.engine, answer=answer)
        assert both.requests == 2
    assert len(answer.text.split(" ")) == 4


async def test_the_only_server_resumes_its_own_answer() -> None:
    async with two_upstreams(Fault("reset", words=4)) as both:
        await both.second.close()
        answer = await collect(both.engine)
        assert servers_of(both.engine)[both.first.url].outages == 1
    assert answer.text == answer_text(MESSAGES, WORDS)
