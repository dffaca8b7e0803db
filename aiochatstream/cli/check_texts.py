"""Texts of ``aiochatstream check``, in English and Japanese."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aiochatstream.texts import Locale


@dataclass(frozen=True, kw_only=True)
class CheckTexts:
    """Texts of a locale, with placeholders for :meth:`str.format`."""

    ok: str
    warning: str
    broken: str
    all_ok: str
    some_broken: str

    loading: str
    weights: str
    device: str
    batching: str
    context: str
    template: str
    answer: str
    response: str
    thought: str
    call: str
    streaming: str
    settings: str
    packages: str

    cannot_decode: str
    speed: str
    speed_cpu: str
    slow_dtype: str
    batched: str
    not_batched: str
    context_batched: str
    context_alone: str
    context_unlimited: str
    no_template: str
    preset: str
    roles: str
    system_yes: str
    system_no: str
    tools_yes: str
    tools_no: str
    switch_yes: str
    switch_no: str
    no_user: str
    eos_ends: str
    eos_misses: str
    end_unknown: str
    of_checkpoint: str
    of_table: str
    no_response_template: str
    survives: str
    is_text: str
    is_lost: str
    is_not_written: str
    is_not_comparable: str
    same_text: str
    other_text: str
    unwritable: str
    no_settings: str
    settings_of_model: str
    nothing_missing: str
    missing_constrained: str
    missing_kernels: str


EN = CheckTexts(
    ok="ok",
    warning="note",
    broken="BROKEN",
    all_ok="Nothing is broken.",
    some_broken="Broken: {names}.",
    loading="loading",
    weights="weights",
    device="device",
    batching="batching",
    context="context",
    template="chat template",
    answer="answers",
    response="response template",
    thought="thoughts",
    call="tool calls",
    streaming="streamed text",
    settings="settings",
    packages="packages",
    cannot_decode="the model cannot decode: {reason}",
    speed="{device}, {dtype}: {speed} tokens/s for one answer",
    speed_cpu="{device}, {dtype}: {speed} tokens/s for one answer "
    "(a typical answer: {float32_seconds} s in float32, {bfloat16_seconds} s in bfloat16)",
    slow_dtype="{device}, {dtype}: {speed} tokens/s for one answer; on this CPU, --dtype float32 is faster",
    batched="answers are decoded together; serve runs {slots} at a time",
    not_batched="answers are decoded one at a time, and serve runs {slots}: {reason}",
    context_batched="{context} tokens, {token} each; room for {slots} answers of this length",
    context_alone="{context} tokens",
    context_unlimited="the model states no limit",
    no_template="none: only /v1/completions is available; choose a format with {remedy}",
    preset="{name}, a preset of prompts",
    roles="{system}, {tools}, {switch}",
    system_yes="system prompt",
    system_no="no system role (part of the first message)",
    tools_yes="tools",
    tools_no="no tools",
    switch_yes="thinking: {levels}",
    switch_no="no thinking switch",
    no_user="messages of users are not rendered",
    eos_ends="begin with {start}, end with {end}",
    eos_misses="begin with {start}; may not stop: {end} is not an end-of-sequence token of the model",
    end_unknown="begin with {start}; the chat template ends them without a special token",
    of_checkpoint="the checkpoint's",
    of_table="{name}, built in",
    no_response_template="none: thoughts are text",
    survives="read as written",
    is_text="not separated from the text",
    is_lost="not read as the chat template writes them: {actual}",
    is_not_written="not in the chat template",
    is_not_comparable="not checked: the chat template writes answers in another way than it begins them",
    same_text="Japanese, emoji and spaces as in the whole text ({tokenizer})",
    other_text="{actual} instead of {expected} ({tokenizer})",
    unwritable="as in the whole text; the tokenizer cannot write {text} ({tokenizer})",
    no_settings="none of the model's own; aiochatstream's apply",
    settings_of_model="of the model: {values}",
    nothing_missing="nothing to install",
    missing_constrained="JSON, grammars and forced calls require: {command}",
    missing_kernels="the weights are dequantised; to keep them in {method}: {command}",
)

JA = CheckTexts(
    ok="正常",
    warning="注意",
    broken="異常",
    all_ok="異常はありません。",
    some_broken="異常: {names}。",
    loading="読み込み",
    weights="重み",
    device="デバイス",
    batching="バッチ処理",
    context="コンテキスト",
    template="チャットテンプレート",
    answer="応答",
    response="応答テンプレート",
    thought="思考",
    call="ツール呼び出し",
    streaming="逐次テキスト",
    settings="モデルの設定",
    packages="パッケージ",
    cannot_decode="デコードできません: {reason}",
    speed="{device}、{dtype}: 1 件の応答で {speed} トークン/秒",
    speed_cpu="{device}、{dtype}: 1 件の応答で {speed} トークン/秒"
    "（標準的な応答: float32 {float32_seconds} 秒、bfloat16 {bfloat16_seconds} 秒）",
    slow_dtype="{device}、{dtype}: 1 件の応答で {speed} トークン/秒。この CPU では --dtype float32 の方が高速です",
    batched="応答をまとめて生成します。serve では同時に {slots} 件です",
    not_batched="応答を 1 件ずつ生成します。serve では同時に {slots} 件です: {reason}",
    context_batched="{context} トークン、1 トークンあたり {token}。この長さの応答 {slots} 件分のメモリーがあります",
    context_alone="{context} トークン",
    context_unlimited="モデルに上限の指定はありません",
    no_template="なし: /v1/completions だけを使えます。{remedy} で形式を指定してください",
    preset="{name}（プロンプトのプリセット）",
    roles="{system}、{tools}、{switch}",
    system_yes="システムプロンプトあり",
    system_no="system ロールなし（最初のメッセージに含めます）",
    tools_yes="ツールあり",
    tools_no="ツールなし",
    switch_yes="思考の切り替え: {levels}",
    switch_no="思考の切り替えなし",
    no_user="ユーザーのメッセージが出力されません",
    eos_ends="{start} で始まり、{end} で終わります",
    eos_misses="{start} で始まります。{end} が終了トークンではないため、止まらないことがあります",
    end_unknown="{start} で始まります。チャットテンプレートに終わりの特殊トークンがありません",
    of_checkpoint="チェックポイントのもの",
    of_table="{name}（組み込み）",
    no_response_template="なし: 思考もテキストとして扱います",
    survives="書かれたとおりに読み取れます",
    is_text="テキストと分けられません",
    is_lost="チャットテンプレートが書くとおりに読み取れません: {actual}",
    is_not_written="チャットテンプレートにありません",
    is_not_comparable="未確認: チャットテンプレートの応答の書き方が、始まりと異なります",
    same_text="日本語、絵文字、空白が全体のテキストと一致します（{tokenizer}）",
    other_text="{expected} が {actual} になります（{tokenizer}）",
    unwritable="全体のテキストと一致します。トークナイザーは {text} を表せません（{tokenizer}）",
    no_settings="モデル自身の設定はなく、aiochatstream の値を使います",
    settings_of_model="モデルの値: {values}",
    nothing_missing="追加でインストールするものはありません",
    missing_constrained="JSON、文法、ツール呼び出しの強制に必要です: {command}",
    missing_kernels="重みの量子化を解除しています。{method} のまま使うには: {command}",
)

CHECK_TEXTS: Mapping[Locale, CheckTexts] = {"en": EN, "ja": JA}
