"""Prompts: built-in ones in English and Japanese, short and long, or those of a file."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

SHORT_EN = (
    "What is the capital of {}, and what is it known for?",
    "Explain in a few sentences how one travels to {} by train.",
    "Write a short poem about the sea near {}.",
    "Give me three tips for a first visit to {}.",
)
PLACES_EN = ("France", "Japan", "Brazil", "Kenya", "Norway", "India", "Canada", "Greece")
SHORT_JA = (
    "{}の首都はどこですか。何が有名ですか。",
    "{}へ電車で旅行する方法を簡単に説明してください。",
    "{}の海について短い詩を書いてください。",
    "初めて{}を訪れる人への助言を三つ教えてください。",
)
PLACES_JA = ("フランス", "日本", "ブラジル", "ケニア", "ノルウェー", "インド", "カナダ", "ギリシャ")

REPORT_EN = """\
Here is a report from the harbour of {}. The first ferry left at six in the morning with forty passengers, two lorries \
and a crate of live lobsters. At seven the wind turned to the north-west and the swell outside the breakwater rose to \
two metres, so the captain of the second ferry waited for an hour while his passengers drank coffee in the old customs \
house. The harbour master noted that the new radio mast works well, but that the lamp on the eastern pier fails \
whenever it rains. Three fishing boats came in before noon. The largest had lost a net to the wreck that has lain \
since last autumn at the mouth of the river, and its crew asked, for the fourth time this year, that the wreck be \
marked with a buoy. In the afternoon a school class visited the lifeboat station; the children were allowed to try \
on helmets and to sound the horn once. The bakery at the market ran out of bread at two. In the evening the sky \
cleared, the wind fell, and the last ferry came in only five minutes late with a brass band on board, which played \
until the gangway was down. The day's income from tickets was eleven per cent above that of the same day last year, \
mostly because of the band.
What should the harbour master of {} do first, and why? Answer with reasons taken from the report."""

REPORT_JA = """\
以下は{}の港からの報告です。朝六時に最初の船が乗客四十人とトラック二台、生きた伊勢海老の箱を乗せて出発しました。七時に風が\
北西に変わり、防波堤の外の波は二メートルになったため、二番目の船の船長は一時間待ち、乗客は古い税関の建物でコーヒーを飲みました。\
港長によれば、新しい無線塔は順調ですが、東の桟橋の灯りは雨が降るたびに消えます。昼前に三隻の漁船が戻りました。一番大きな船は、\
昨年の秋から河口に沈んでいる難破船に網を取られ、乗組員は今年四回目となる浮標の設置を求めました。午後には小学生が救命艇の基地を\
見学し、帽子をかぶり、一度だけ汽笛を鳴らしました。夕方には空が晴れ、最後の船は楽団を乗せて五分遅れで着きました。
{}の港長は最初に何をすべきでしょうか。報告の内容を理由として挙げて答えてください。"""


def _fill(templates: tuple[str, ...], places: tuple[str, ...]) -> list[str]:
    return [template.replace("{}", place) for place, template in product(places, templates)]


BUILT_IN = {
    "en-short": _fill(SHORT_EN, PLACES_EN),
    "en-long": _fill((REPORT_EN,), PLACES_EN),
    "ja-short": _fill(SHORT_JA, PLACES_JA),
    "ja-long": _fill((REPORT_JA,), PLACES_JA),
}
BUILT_IN["mixed"] = [prompt for group in zip(*BUILT_IN.values(), strict=False) for prompt in group]


class Prompts:
    """Prompts of a load test, by request number.

    Built-in prompts start with a unique number, so that no prefix cache contains them. Prompts of a file are used
    unchanged and in turn.
    """

    def __init__(self, kind: str, seed: int) -> None:
        """Raise ValueError if ``kind`` is neither built in nor a readable file of prompts."""
        self._numbered = kind in BUILT_IN
        self._texts = BUILT_IN[kind] if self._numbered else _read(Path(kind))
        self._seed = seed

    def __getitem__(self, index: int) -> str:
        text = self._texts[index % len(self._texts)]
        return f"({self._seed}-{index}) {text}" if self._numbered else text


def _read(file: Path) -> list[str]:
    names = ", ".join(BUILT_IN)
    try:
        content = file.read_text(encoding="utf-8")
        texts = json.loads(content) if file.suffix == ".json" else content.splitlines()
    except OSError as error:
        raise ValueError(
            f"--prompts {file}: must be built in ({names}) or a readable file ({error.strerror})."
        ) from None
    except ValueError as error:
        raise ValueError(f"--prompts {file}: {error}.") from None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"--prompts {file}: must be a JSON list of strings.")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError(f"--prompts {file}: contains no prompts.")
    return texts
