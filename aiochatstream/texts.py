"""What people read on the command line and in the log, in English and Japanese.

What programs read stays English: errors on the wire, and the sentences of validation that name a field and its range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Locale = Literal["en", "ja"]

LOCALES: tuple[Locale, ...] = get_args(Locale)


@dataclass(frozen=True, kw_only=True)
class Messages:
    """All messages of one locale; what stands in braces is for ``format``."""

    # the log
    load_failed: str
    stopping: str
    stuck: str

    # loading, and serve
    small_model: str
    loading: str
    loading_name: str
    ready: str
    row_model: str
    row_device: str
    row_concurrency: str
    row_queue: str
    row_context: str
    row_recording: str
    row_openai: str
    talk: str
    cannot_listen: str
    key_file_alone: str
    dev_key: str
    no_key_file: str
    no_key: str
    redis_alone: str
    no_redis_url: str

    # chat: around an answer
    welcome: str
    leaving: str
    queued: str
    stopped: str
    cut: str
    dropped: str
    not_stored: str
    tokens: str
    rate: str
    first: str
    prompt_tokens: str
    again_in: str

    # chat: what commands say
    no_command: str
    no_such_command: str
    takes_file: str
    cleared: str
    nothing_to_clear: str
    system: str
    models_own_system: str
    server_sets_system: str
    no_params: str
    no_such_param: str
    params_in_pairs: str
    saved: str
    loaded: str
    not_a_conversation: str
    no_stats: str
    last_answer: str
    all_answers: str

    # chat: the table of /help
    help_regenerate: str
    help_clear: str
    help_system: str
    help_params: str
    help_save: str
    help_load: str
    help_stats: str
    help_help: str
    help_exit: str
    help_keys: str

    # chat: a server
    not_for_server: str
    cannot_connect: str
    connection_broke: str
    not_a_server: str


EN = Messages(
    load_failed="The model could not be loaded",
    stopping="Stopping {count} answers that still run after shutdown_timeout.",
    stuck="{count} answers do not stop: their engine is stuck in a step.",
    small_model="the small model",
    loading="Loading {model} ... ({url} answers 503 meanwhile)",
    loading_name="Loading {name}",
    ready="\nReady on {url}",
    row_model="  model        {model}",
    row_device="  device       {device}, {dtype}",
    row_concurrency="  concurrency  {slots} answers at a time",
    row_queue="  queue        {places} requests wait, the next one gets {status}",
    row_context="  context      {context} tokens, {answer} of them for the answer",
    row_recording="  recording    every answer, in {folder}",
    row_openai="  OpenAI API   {url}",
    talk="\nTalk to it: open {url} in a browser, or\n  {command}\nCtrl-C stops it.",
    cannot_listen="Cannot listen on {host}:{port}: {reason}.",
    key_file_alone="--secret-key-file and --dev go with --session cookie.",
    dev_key="--dev: the key of the cookies is made at this start; with the next one, every conversation is gone.",
    no_key_file="--session cookie needs --secret-key-file FILE, or {variable}. "
    "Make a key with: (umask 077; {command} > FILE)",
    no_key="{file} holds no key (32 bytes, URL-safe base64). Make one with: {command}",
    redis_alone="--redis goes with --session redis.",
    no_redis_url="--session redis needs --redis URL, or {variable}: redis://127.0.0.1:6379 say.",
    welcome="{name}: /help shows the commands. Alt+Enter begins a new line, Ctrl-C stops an answer, Ctrl-D leaves.",
    leaving="Ctrl-C again or Ctrl-D leaves.",
    queued="waiting, at place {position} of the queue",
    stopped="(stopped)",
    cut="(cut off at its greatest length)",
    dropped="(for want of room, the oldest turns were forgotten: {count})",
    not_stored="(too long to be kept: the conversation is as it was before)",
    tokens="{count} tokens",
    rate="{rate:.1f} tokens/s",
    first="first after {seconds:.2f} s",
    prompt_tokens="prompts of {count} tokens, {cached} of them not computed again",
    again_in="Try again in {seconds} s.",
    no_command="There is no command {name}. /help shows all; a message that begins with / is written with //.",
    no_such_command="There is no command {name}. Is it {nearest}? A message that begins with / is written with //.",
    takes_file="{name} takes the name of a file.",
    cleared="The conversation is forgotten.",
    nothing_to_clear="There was nothing to forget.",
    system="System prompt: {text}",
    models_own_system="System prompt: the model's own. /system TEXT sets another one.",
    server_sets_system="The system prompt is set by the server.",
    no_params="No parameter is set: they are as they were at the start. /params NAME VALUE sets one of {names}.",
    no_such_param="There is no parameter {name}. There are {names}.",
    params_in_pairs="/params takes names and values in turn, such as: /params temperature 0.5 top_k 40",
    saved="{count} turns are saved in {file}.",
    loaded="{count} turns are loaded from {file}.",
    not_a_conversation="{file} holds no conversation that /save wrote: {reason}",
    no_stats="There is no answer yet.",
    last_answer="last answer: {parts}",
    all_answers="all {count}: {parts}",
    help_regenerate="answer the last message again",
    help_clear="forget the conversation",
    help_system="show or set the system prompt",
    help_params="show or set generation parameters; the value default takes one back",
    help_save="write the conversation into a file (JSON)",
    help_load="go on with the conversation of a file",
    help_stats="tokens and speed of the last answer and of all",
    help_help="this",
    help_exit="leave (so does Ctrl-D)",
    help_keys="Enter sends, Alt+Enter begins a new line, Ctrl-C stops an answer. // at the start of a message is a /.",
    not_for_server="{option} goes with a model in this process; a server has its own.",
    cannot_connect="Cannot connect to {url}: {reason}.",
    connection_broke="The connection to {url} broke before the answer was complete.",
    not_a_server="{url} does not answer as an aiochatstream server does ({reason}).",
)

JA = Messages(
    load_failed="モデルを読み込めませんでした",
    stopping="shutdown_timeout を過ぎても終わらない {count} 件の回答を停止します。",
    stuck="{count} 件の回答が停止しません。エンジンが処理の途中で止まっています。",
    small_model="小さいモデル",
    loading="{model} を読み込んでいます … (その間 {url} は 503 を返します)",
    loading_name="{name} の読み込み",
    ready="\n準備ができました: {url}",
    row_model="  モデル        {model}",
    row_device="  デバイス      {device}, {dtype}",
    row_concurrency="  同時生成数    {slots} 件",
    row_queue="  待ち行列      {places} 件まで待ち、その次は {status} を返します",
    row_context="  コンテキスト  {context} トークン (うち回答 {answer})",
    row_recording="  記録          すべての回答を {folder} に残します",
    row_openai="  OpenAI の API {url}",
    talk="\n話しかけるには: ブラウザで {url} を開くか、\n  {command}\nCtrl-C で終了します。",
    cannot_listen="{host}:{port} で待ち受けできません: {reason}",
    key_file_alone="--secret-key-file と --dev は --session cookie と一緒に指定します。",
    dev_key="--dev: クッキーの鍵は起動のたびに新しく作られ、次の起動ですべての会話が失われます。",
    no_key_file="--session cookie には --secret-key-file FILE か {variable} が必要です。"
    "作り方: (umask 077; {command} > FILE)",
    no_key="{file} に鍵 (32 バイト、URL-safe base64) がありません。作り方: {command}",
    redis_alone="--redis は --session redis と一緒に指定します。",
    no_redis_url="--session redis には --redis URL か {variable} が必要です (例: redis://127.0.0.1:6379)。",
    welcome="{name}: /help でコマンド一覧。Alt+Enter で改行、Ctrl-C で回答を停止、Ctrl-D で終了します。",
    leaving="もう一度 Ctrl-C、または Ctrl-D で終了します。",
    queued="順番待ち: {position} 番目",
    stopped="(停止しました)",
    cut="(長さの上限で打ち切りました)",
    dropped="(入りきらないため、古いやりとりを {count} 件消しました)",
    not_stored="(長すぎて保存できません。会話は前のままです)",
    tokens="{count} トークン",
    rate="{rate:.1f} トークン/秒",
    first="最初まで {seconds:.2f} 秒",
    prompt_tokens="プロンプト {count} トークン (うち再計算なし {cached})",
    again_in="{seconds} 秒後にもう一度お試しください。",
    no_command="{name} というコマンドはありません。/help で一覧を表示します。/ で始まる文は // で始めてください。",
    no_such_command="{name} というコマンドはありません。{nearest} ですか? / で始まる文は // で始めてください。",
    takes_file="{name} にはファイル名が必要です。",
    cleared="会話を消去しました。",
    nothing_to_clear="消去する会話はありません。",
    system="システムプロンプト: {text}",
    models_own_system="システムプロンプト: モデルの既定。/system TEXT で変更できます。",
    server_sets_system="システムプロンプトはサーバー側で決まります。",
    no_params="変更したパラメータはありません。/params NAME VALUE で設定できます: {names}",
    no_such_param="{name} というパラメータはありません。使えるもの: {names}",
    params_in_pairs="/params は名前と値を交互に指定します。例: /params temperature 0.5 top_k 40",
    saved="{count} 回のやり取りを {file} に保存しました。",
    loaded="{count} 回のやり取りを {file} から読み込みました。",
    not_a_conversation="{file} は /save で保存した会話ではありません: {reason}",
    no_stats="まだ回答がありません。",
    last_answer="最後の回答: {parts}",
    all_answers="全 {count} 件: {parts}",
    help_regenerate="最後の発言にもう一度答える",
    help_clear="会話を消去する",
    help_system="システムプロンプトを表示・設定する",
    help_params="生成パラメータを表示・設定する (値 default で元に戻す)",
    help_save="会話をファイル (JSON) に保存する",
    help_load="ファイルの会話を続ける",
    help_stats="最後の回答と全体のトークン数・速度",
    help_help="この一覧",
    help_exit="終了する (Ctrl-D でも)",
    help_keys="Enter で送信、Alt+Enter で改行、Ctrl-C で回答を停止。文頭の // は / になります。",
    not_for_server="{option} はこのプロセスで動かすモデル用です。サーバーには指定できません。",
    cannot_connect="{url} に接続できません: {reason}",
    connection_broke="回答の途中で {url} との接続が切れました。",
    not_a_server="{url} は aiochatstream のサーバーではないようです ({reason})。",
)

MESSAGES: Mapping[Locale, Messages] = {"en": EN, "ja": JA}


def messages_of(locale: Locale) -> Messages:
    """The messages of ``locale``. Raises ValueError for one that is not there."""
    if locale not in LOCALES:
        raise ValueError(f"locale: must be {' or '.join(map(repr, LOCALES))}, not {locale!r}.")
    return MESSAGES[locale]


def locale_of(environment: Mapping[str, str]) -> Locale:
    """The locale that LC_ALL, LC_MESSAGES or LANG name, the first that is set; ``en`` for all but Japanese."""
    names = (environment.get(variable) for variable in ("LC_ALL", "LC_MESSAGES", "LANG"))
    name = next(filter(None, names), "")
    return "ja" if name.partition(".")[0].partition("_")[0] == "ja" else "en"
