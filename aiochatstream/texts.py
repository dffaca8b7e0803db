"""Texts of the command line and the log, in English and Japanese.

Texts for programs are always English: errors on the wire, and validation errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Locale = Literal["en", "ja"]

LOCALES: tuple[Locale, ...] = get_args(Locale)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """All texts of a locale, with placeholders for :meth:`str.format`."""

    # log
    load_failed: str
    stopping: str
    stuck: str

    # loading and serve
    small_model: str
    loading: str
    loading_name: str
    ready: str
    row_model: str
    row_device: str
    row_weights: str
    row_servers: str
    dequantized: str
    row_concurrency: str
    row_queue: str
    row_context: str
    row_recording: str
    row_openai: str
    row_no_chats: str
    usage: str
    cannot_listen: str
    cannot_listen_at: str
    key_file_without_cookie: str
    dev_key: str
    no_key_file: str
    no_key: str
    redis_without_session: str
    no_redis_url: str

    # chat: answers
    welcome: str
    leaving: str
    queued: str
    stopped: str
    cut: str
    cut_thinking: str
    dropped: str
    not_stored: str
    tokens: str
    thinking_tokens: str
    rate: str
    first: str
    prompt_tokens: str
    retry_in: str

    # chat: replies to commands
    no_command: str
    no_such_command: str
    needs_file: str
    cleared: str
    nothing_to_clear: str
    system: str
    default_system: str
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

    # chat: servers
    not_for_server: str
    cannot_connect: str
    connection_broke: str
    not_a_server: str


EN = Texts(
    load_failed="The model could not be loaded",
    stopping="shutdown_timeout reached: stopping {count} running answers.",
    stuck="{count} answers do not stop: the engine is stuck in a step.",
    small_model="the small model",
    loading="Loading {model} ... (until then, {url} responds with 503)",
    loading_name="Loading {name}",
    ready="\nReady on {url}",
    row_model="  model        {model}",
    row_device="  device       {device}, {dtype}",
    row_weights="  weights      {weights}",
    row_servers="  servers      {servers}",
    dequantized="dequantised: {disk} on disk, {memory} in memory",
    row_concurrency="  concurrency  {slots} answers at a time",
    row_queue="  queue        {places} waiting requests; further ones get {status}",
    row_context="  context      {context} tokens, including up to {answer} for the answer",
    row_recording="  recording    all answers, in {folder}",
    row_openai="  OpenAI API   {url}",
    row_no_chats="  chats        none: the model has no chat template. Only /v1/completions works; for chats, set\n"
    "               {options}",
    usage="\nTo chat, open {url} in a browser, or run\n  {command}\nCtrl-C stops the server.",
    cannot_listen="Cannot listen on {host}:{port}: {reason}.",
    cannot_listen_at="Cannot listen at {path}: {reason}.",
    key_file_without_cookie="--secret-key-file and --dev require --session cookie.",
    dev_key="--dev: using a temporary key for cookies. All conversations are lost at the next start.",
    no_key_file="--session cookie requires --secret-key-file FILE, or {variable}. "
    "Make a key with: (umask 077; {command} > FILE)",
    no_key="{file} contains no key (32 bytes, URL-safe base64). Make one with: {command}",
    redis_without_session="--redis requires --session redis.",
    no_redis_url="--session redis requires --redis URL, or {variable}, for example redis://127.0.0.1:6379.",
    welcome="{name}: /help lists the commands. Alt+Enter inserts a new line, Ctrl-C stops an answer, Ctrl-D exits.",
    leaving="Press Ctrl-C again or Ctrl-D to exit.",
    queued="waiting, position {position} in the queue",
    stopped="(stopped)",
    cut="(cut off at the maximum length)",
    cut_thinking="(cut off at the maximum length while thinking, before the answer)",
    dropped="(context full: the {count} oldest turns were dropped)",
    not_stored="(too long to store: the conversation is unchanged)",
    tokens="{count} tokens",
    thinking_tokens="{count} of them for thinking",
    rate="{rate:.1f} tokens/s",
    first="first after {seconds:.2f} s",
    prompt_tokens="{count} prompt tokens, {cached} of them cached",
    retry_in="Try again in {seconds} s.",
    no_command="Unknown command {name}. /help lists all commands; to send a message that begins with /, type //.",
    no_such_command="Unknown command {name}. Did you mean {nearest}? To send a message that begins with /, type //.",
    needs_file="{name} needs a file name.",
    cleared="Conversation cleared.",
    nothing_to_clear="The conversation is empty.",
    system="System prompt: {text}",
    default_system="System prompt: the model's default. /system TEXT sets another one.",
    server_sets_system="The server does not allow setting the system prompt.",
    no_params="No parameters are set. /params NAME VALUE sets one of {names}.",
    no_such_param="Unknown parameter {name}; choose from {names}.",
    params_in_pairs="/params needs pairs of names and values, for example: /params temperature 0.5 top_k 40",
    saved="{count} turns saved to {file}.",
    loaded="{count} turns loaded from {file}.",
    not_a_conversation="{file} is not a conversation file: {reason}",
    no_stats="No answers yet.",
    last_answer="last answer: {parts}",
    all_answers="all {count}: {parts}",
    help_regenerate="answer the last message again",
    help_clear="clear the conversation",
    help_system="show or set the system prompt",
    help_params="show or set generation parameters; the value default resets one",
    help_save="save the conversation to a file (JSON)",
    help_load="continue the conversation of a file",
    help_stats="show tokens and speed of the last answer and of all answers",
    help_help="show this list",
    help_exit="exit (also Ctrl-D)",
    help_keys="Enter sends, Alt+Enter inserts a new line, Ctrl-C stops an answer. Start a message with // to send /.",
    not_for_server="{option} requires a model in this process; a server uses its own setting.",
    cannot_connect="Cannot connect to {url}: {reason}.",
    connection_broke="The connection to {url} broke before the answer was complete.",
    not_a_server="{url} does not respond like an aiochatstream server ({reason}).",
)

JA = Texts(
    load_failed="モデルを読み込めませんでした",
    stopping="shutdown_timeout に達したため、生成中の {count} 件の応答を停止します。",
    stuck="{count} 件の応答が停止しません。エンジンが処理の途中で止まっています。",
    small_model="小型モデル",
    loading="{model} を読み込んでいます … （完了するまで {url} は 503 を返します）",
    loading_name="{name} の読み込み",
    ready="\n準備ができました: {url}",
    row_model="  モデル        {model}",
    row_device="  デバイス      {device}, {dtype}",
    row_weights="  重み          {weights}",
    row_servers="  サーバー      {servers}",
    dequantized="量子化を解除: ディスク上 {disk}、メモリー上 {memory}",
    row_concurrency="  同時生成数    {slots} 件",
    row_queue="  待ち行列      {places} 件まで待機。それを超えると {status} を返します",
    row_context="  コンテキスト  {context} トークン（うち応答は最大 {answer}）",
    row_recording="  記録          すべての応答を {folder} に保存します",
    row_openai="  OpenAI の API {url}",
    row_no_chats="  会話          不可（チャットテンプレートがなく、/v1/completions だけを使えます）。会話の形式は\n"
    "                {options} で指定します",
    usage="\n会話するには、ブラウザーで {url} を開くか、次のコマンドを実行します。\n  {command}\nCtrl-C で終了します。",
    cannot_listen="{host}:{port} で待ち受けできません: {reason}",
    cannot_listen_at="{path} で待ち受けできません: {reason}",
    key_file_without_cookie="--secret-key-file と --dev は --session cookie と一緒に指定します。",
    dev_key="--dev: Cookie に一時的な鍵を使います。次に起動すると、すべての会話が失われます。",
    no_key_file="--session cookie には --secret-key-file FILE または {variable} が必要です。"
    "鍵の作り方: (umask 077; {command} > FILE)",
    no_key="{file} に鍵（32 バイト、URL-safe base64）がありません。鍵の作り方: {command}",
    redis_without_session="--redis は --session redis と一緒に指定します。",
    no_redis_url="--session redis には --redis URL または {variable} が必要です（例: redis://127.0.0.1:6379）。",
    welcome="{name}: /help でコマンド一覧を表示、Alt+Enter で改行、Ctrl-C で応答を停止、Ctrl-D で終了します。",
    leaving="もう一度 Ctrl-C、または Ctrl-D で終了します。",
    queued="順番待ち: {position} 番目",
    stopped="（停止しました）",
    cut="（長さの上限で打ち切りました）",
    cut_thinking="（応答の前の思考中に、長さの上限で打ち切りました）",
    dropped="（コンテキストがいっぱいのため、古いやり取りを {count} 件削除しました）",
    not_stored="（長すぎて保存できません。会話は変更されていません）",
    tokens="{count} トークン",
    thinking_tokens="うち思考 {count} トークン",
    rate="{rate:.1f} トークン/秒",
    first="最初まで {seconds:.2f} 秒",
    prompt_tokens="プロンプト {count} トークン（うちキャッシュ済み {cached}）",
    retry_in="{seconds} 秒後にもう一度お試しください。",
    no_command="{name} というコマンドはありません。/help で一覧を表示します。"
    "/ で始まるメッセージは // で始めてください。",
    no_such_command="{name} というコマンドはありません。{nearest} ですか？ "
    "/ で始まるメッセージは // で始めてください。",
    needs_file="{name} にはファイル名が必要です。",
    cleared="会話を消去しました。",
    nothing_to_clear="消去する会話はありません。",
    system="システムプロンプト: {text}",
    default_system="システムプロンプト: モデルの既定値。/system TEXT で変更できます。",
    server_sets_system="このサーバーでは、システムプロンプトを変更できません。",
    no_params="設定したパラメーターはありません。/params NAME VALUE で設定できます: {names}",
    no_such_param="{name} というパラメーターはありません。使用できるもの: {names}",
    params_in_pairs="/params には名前と値の組を指定します。例: /params temperature 0.5 top_k 40",
    saved="{count} 回のやり取りを {file} に保存しました。",
    loaded="{count} 回のやり取りを {file} から読み込みました。",
    not_a_conversation="{file} は会話ファイルとして読み込めません: {reason}",
    no_stats="まだ応答がありません。",
    last_answer="最後の応答: {parts}",
    all_answers="全 {count} 件: {parts}",
    help_regenerate="最後のメッセージに対する応答を生成し直す",
    help_clear="会話を消去する",
    help_system="システムプロンプトを表示または設定する",
    help_params="生成パラメーターを表示または設定する（値 default で元に戻す）",
    help_save="会話をファイル（JSON）に保存する",
    help_load="ファイルの会話を続ける",
    help_stats="最後の応答と全体のトークン数、速度を表示する",
    help_help="この一覧を表示する",
    help_exit="終了する（Ctrl-D でも終了）",
    help_keys="Enter で送信、Alt+Enter で改行、Ctrl-C で応答を停止します。先頭の // は / として送信します。",
    not_for_server="{option} は、このプロセスで動かすモデルにだけ指定できます。",
    cannot_connect="{url} に接続できません: {reason}",
    connection_broke="応答の途中で {url} との接続が切れました。",
    not_a_server="{url} は aiochatstream のサーバーではないようです（{reason}）。",
)

TEXTS: Mapping[Locale, Texts] = {"en": EN, "ja": JA}


def texts_for(locale: Locale) -> Texts:
    """Return the texts of ``locale``. Raise ValueError if there are none."""
    if locale not in LOCALES:
        raise ValueError(f"locale: must be {' or '.join(map(repr, LOCALES))}, not {locale!r}.")
    return TEXTS[locale]


def format_bytes(count: int) -> str:
    """Return a size with a decimal unit and three digits or more, for example ``538 MB`` or ``1.50 GB``."""
    size, unit = float(count), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    digits = 0 if unit == "bytes" or size >= 100 else 1 if size >= 10 else 2
    return f"{size:.{digits}f} {unit}"


def locale_from_environment(environment: Mapping[str, str]) -> Locale:
    """Return the locale of LC_ALL, LC_MESSAGES or LANG, the first that is set; ``en`` unless it is Japanese."""
    names = (environment.get(variable) for variable in ("LC_ALL", "LC_MESSAGES", "LANG"))
    name = next(filter(None, names), "")
    return "ja" if name.partition(".")[0].partition("_")[0] == "ja" else "en"
