"""Chat templates with the structure of those that families of models publish."""

from __future__ import annotations

CHATML = r"""
{%- set ns = namespace(question=-1) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{% set ns.question = loop.index0 %}{% endif %}
{%- endfor %}
{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{% endif %}
{{- '<tools>' }}{% for tool in tools %}{{- '\n' }}{{- tool | tojson }}{% endfor %}{{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\n' }}THOUGHT{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}{{- '\n<tool_call>\n' }}CALL{{- '\n</tool_call>' }}{% endfor %}
{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}BEGIN{% endif %}"""

JSON_CALL = r"""
{{- '{"name": "' + call.function.name + '", "arguments": ' }}{{- call.function.arguments | tojson }}{{- '}' }}"""

XML_CALL = r"""
{{- '<function=' + call.function.name + '>\n' }}
{%- for key, value in call.function.arguments | items %}
{{- '<parameter=' + key + '>\n' }}{{- value if value is string else value | tojson }}{{- '\n</parameter>\n' }}
{%- endfor %}{{- '</function>' }}"""

NEWEST_THOUGHT = r"""
{%- if message.reasoning_content is string and loop.index0 > ns.question %}
{{- '<think>\n' + message.reasoning_content.strip('\n') + '\n</think>\n\n' }}
{%- endif %}"""

EMPTY_THOUGHT = r"""
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}OTHERWISE{% endif %}"""


def chatml(call: str, thought: str = "", begin: str = "") -> str:
    """Return a template like those of Qwen.

    :param call: template of a call.
    :param thought: template of a thought in a message.
    :param begin: template of the beginning of an answer.
    """
    return CHATML.replace("CALL", call).replace("THOUGHT", thought).replace("BEGIN", begin)


QWEN3 = chatml(JSON_CALL, NEWEST_THOUGHT, EMPTY_THOUGHT.replace("OTHERWISE", ""))
"""Thoughts of the newest answer only, and a switch that writes an empty thought."""

QWEN3_5 = chatml(XML_CALL, NEWEST_THOUGHT, EMPTY_THOUGHT.replace("OTHERWISE", r"{% else %}{{- '<think>\n' }}"))
"""Like Qwen3, with calls in XML and a prompt that opens the thought."""

HERMES = chatml(JSON_CALL)
"""Like Qwen3, without thoughts."""

THINKING = r"""
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.reasoning_content %}{{- '<think>' + message.reasoning_content + '</think>' }}{% endif %}
{{- message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
"""All thoughts, and no tools."""

HARMONY = r"""
{%- set effort = reasoning_effort if reasoning_effort is defined else 'medium' %}
{{- '<|start|>system<|message|>Reasoning: ' + effort + '\n# Valid channels: analysis, commentary, final.<|end|>' }}
{%- set rest = messages %}
{%- if messages[0].role in ('system', 'developer') %}
{%- set instructions = messages[0].content %}{% set rest = messages[1:] %}
{%- endif %}
{%- if instructions or tools %}
{{- '<|start|>developer<|message|>' + (instructions or '') }}
{%- if tools %}{{- '\nnamespace functions {\n' }}{% for tool in tools %}
{{- 'type ' + tool.function.name + ' = (_: ' }}{{- tool.function.parameters | tojson }}{{- ') => any;\n' }}
{%- endfor %}{{- '}' }}{% endif %}
{{- '<|end|>' }}
{%- endif %}
{%- set last = namespace(call=none) %}
{%- for message in rest %}
{%- if message.role == 'assistant' %}
{%- if message.tool_calls %}
{%- if message.content and message.thinking %}
{{- raise_exception('An assistant message with calls must have content or thinking, not both.') }}
{%- endif %}
{%- if message.content or message.thinking %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + (message.content or message.thinking) + '<|end|>' }}
{%- endif %}
{%- set call = message.tool_calls[0].function %}{% set last.call = call.name %}
{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
{{- call.arguments | tojson }}{{- '<|call|>' }}
{%- else %}
{%- if message.thinking and loop.last %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
{%- endif %}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
{%- endif %}
{%- elif message.role == 'tool' %}
{%- if last.call is none %}{{- raise_exception('A result must follow a call.') }}{% endif %}
{{- '<|start|>functions.' + last.call + ' to=assistant<|channel|>commentary<|message|>' }}
{{- message.content | tojson }}{{- '<|end|>' }}
{%- else %}{{- '<|start|>user<|message|>' + message.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{% endif %}"""
"""Channels, a level of effort, and calls whose thought is their content."""

GEMMA4 = r"""
{{- bos_token }}
{%- set rest = messages %}
{%- set system = messages[0].role in ('system', 'developer') %}
{%- if system or tools or enable_thinking %}
{{- '<|turn>system\n' }}{% if enable_thinking %}{{- '<|think|>\n' }}{% endif %}
{%- if system %}{{- messages[0].content | trim }}{% set rest = messages[1:] %}{% endif %}
{%- for tool in tools or [] %}
{{- '<|tool>declaration:' + tool.function.name + '{parameters:' }}{{- tool.function.parameters | tojson }}
{{- '}<tool|>' }}
{%- endfor %}
{{- '<turn|>\n' }}
{%- endif %}
{%- set ns = namespace(open=false) %}
{%- for message in rest %}
{%- if message.role == 'tool' %}
{{- '<|tool_response>response:' + (message.name or 'unknown') + '{value:<|"|>' }}
{{- message.content + '<|"|>}<tool_response|>' }}
{%- else %}
{%- if not ns.open %}{{- '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}{% endif %}
{%- if message.reasoning and message.tool_calls %}
{{- '<|channel>thought\n' + message.reasoning + '<channel|>' }}
{%- endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '<|tool_call>call:' + call.function.name + '{' }}
{%- for key, value in call.function.arguments | dictsort %}
{{- key + ':<|"|>' + value + '<|"|>' }}{% if not loop.last %},{% endif %}
{%- endfor %}
{{- '}<tool_call|>' }}
{%- endfor %}
{%- set ns.open = message.tool_calls and message.role == 'assistant' %}
{%- if not ns.open %}{{- '<turn|>\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not ns.open %}{{- '<|turn>model\n' }}{% endif %}"""
"""Thoughts by a token in the system turn, and results of calls in the model's turn."""

FUNCTION_GEMMA = r"""
{{- bos_token }}
{%- set rest = messages %}
{%- if tools or messages[0].role in ('system', 'developer') %}
{{- '<start_of_turn>developer\n' }}
{%- if messages[0].role in ('system', 'developer') %}
{{- messages[0].content | trim }}{% set rest = messages[1:] %}
{%- endif %}
{%- for tool in tools or [] %}
{{- '<start_function_declaration>declaration:' + tool.function.name + '{parameters:' }}
{{- tool.function.parameters | tojson }}{{- '}<end_function_declaration>' }}
{%- endfor %}
{{- '<end_of_turn>\n' }}
{%- endif %}
{%- set ns = namespace(previous='') %}
{%- for message in rest %}
{%- if message.role == 'tool' %}
{{- '<start_function_response>response:' + (message.name or 'unknown') + '{value:<escape>' }}
{{- message.content + '<escape>}<end_function_response>' }}
{%- else %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
{{- (message.content or '') | trim }}
{%- for call in message.tool_calls or [] %}
{{- '<start_function_call>call:' + call.function.name + '{' }}
{%- for key, value in call.function.arguments | dictsort %}
{{- key + ':<escape>' + value + '<escape>' }}{% if not loop.last %},{% endif %}
{%- endfor %}
{{- '}<end_function_call>' }}
{%- endfor %}
{%- if not message.tool_calls %}{{- '<end_of_turn>\n' }}{% endif %}
{%- endif %}
{%- set ns.previous = message.role %}
{%- endfor %}
{%- if add_generation_prompt and ns.previous != 'tool' %}{{- '<start_of_turn>model\n' }}{% endif %}"""

MISTRAL = r"""
{{- bos_token }}
{%- set effort = reasoning_effort if reasoning_effort is defined and reasoning_effort is not none else 'none' %}
{%- if effort not in ('none', 'high') %}{{- raise_exception('reasoning_effort must be none or high.') }}{% endif %}
{%- set rest = messages %}
{%- if messages[0].role == 'system' %}
{{- '[SYSTEM_PROMPT]' + messages[0].content + '[/SYSTEM_PROMPT]' }}{% set rest = messages[1:] %}
{%- endif %}
{%- if tools %}{{- '[AVAILABLE_TOOLS]' }}{{- tools | tojson }}{{- '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[MODEL_SETTINGS]{"reasoning_effort": "' + effort + '"}[/MODEL_SETTINGS]' }}
{%- for message in rest %}
{%- if message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}
{%- elif message.role == 'assistant' %}
{%- if message.content is string %}{{- message.content }}
{%- else %}
{%- for block in message.content or [] %}
{{- '[THINK]' + block.thinking + '[/THINK]' if block.type == 'thinking' else block.text }}
{%- endfor %}
{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}{{- call.function.arguments | tojson }}
{%- endfor %}
{{- eos_token }}
{%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
{%- else %}{{- raise_exception('Roles are user, assistant and tool.') }}
{%- endif %}
{%- endfor %}"""
"""Two efforts, and thoughts as parts of the content."""

MISTRAL_LIST = r"""
{{- bos_token }}
{%- set rest = messages %}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}{% endif %}
{%- for message in rest %}
{%- if message.role == 'user' %}
{%- if loop.last and tools %}{{- '[AVAILABLE_TOOLS] ' }}{{- tools | tojson }}{{- '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST] ' + (system + '\n\n' if system and loop.last else '') + message.content + '[/INST]' }}
{%- elif message.role == 'assistant' and message.tool_calls %}
{{- '[TOOL_CALLS] [' }}
{%- for call in message.tool_calls %}
{%- if call.id is not defined or call.id | length != 9 %}
{{- raise_exception('Ids of calls must have nine letters and digits.') }}
{%- endif %}
{{- '{"name": "' + call.function.name + '", "arguments": ' }}{{- call.function.arguments | tojson }}
{{- ', "id": "' + call.id + '"}' }}{{- ', ' if not loop.last else ']' + eos_token }}
{%- endfor %}
{%- elif message.role == 'assistant' %}{{- ' ' + message.content + eos_token }}
{%- elif message.role == 'tool' %}
{%- if message.tool_call_id is not defined or message.tool_call_id | length != 9 %}
{{- raise_exception('Ids of calls must have nine letters and digits.') }}
{%- endif %}
{{- '[TOOL_RESULTS] {"content": ' + message.content + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
{%- endif %}
{%- endfor %}"""

LLAMA3 = r"""
{{- bos_token }}
{%- set rest = messages %}
{%- set system = '' %}
{%- if messages[0].role == 'system' %}
{%- set system = messages[0].content | trim %}{% set rest = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{%- if tools %}{{- 'Environment: ipython\n' }}{% endif %}
{%- for tool in tools or [] %}{{- tool | tojson }}{{- '\n\n' }}{% endfor %}
{{- system + '<|eot_id|>' }}
{%- for message in rest %}
{%- if message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{- raise_exception('This model calls one tool at a time.') }}{% endif %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", "parameters": ' }}
{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}
{%- elif message.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}{{- message.content | tojson }}{{- '<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

LLAMA3_THINKING = LLAMA3.replace("message.content", "message.content.split('</think>')[-1]")
"""A Llama 3 that was trained to think, whose template removes thoughts from the content."""

DEEPSEEK = r"""
{%- if not thinking is defined %}{% set thinking = false %}{% endif %}
{{- bos_token }}
{%- set ns = namespace(tool=false) %}
{%- for message in messages %}{% if message.role == 'system' %}{{- message.content }}{% endif %}{% endfor %}
{%- if tools %}{{- '\n## Tools\n' }}{% endif %}
{%- for tool in tools or [] %}{{- tool.function | tojson }}{{- '\n' }}{% endfor %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<｜User｜>' + message.content }}{% set ns.tool = false %}
{%- elif message.role == 'assistant' %}
{%- if not ns.tool %}{{- '<｜Assistant｜></think>' }}{% endif %}
{%- if message.content %}{{- message.content.split('</think>')[-1] }}{% endif %}
{%- for call in message.tool_calls or [] %}
{{- '<｜tool▁calls▁begin｜>' if loop.first else '' }}
{{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call.function.name + '\n```json\n' + call.function.arguments }}
{{- '\n```<｜tool▁call▁end｜>' }}{{- '<｜tool▁calls▁end｜>' if loop.last else '' }}
{%- endfor %}
{{- '<｜end▁of▁sentence｜>' }}{% set ns.tool = false %}
{%- elif message.role == 'tool' %}
{{- '<｜tool▁output▁begin｜>' + message.content + '<｜tool▁output▁end｜>' }}{% set ns.tool = true %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not ns.tool %}
{{- '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}
{%- endif %}"""
"""Arguments of calls as text, and thoughts by a variable."""

DEEPSEEK_R1 = DEEPSEEK.replace("('<think>' if thinking else '</think>')", r"'<think>\n'").replace(
    "{%- if not thinking is defined %}{% set thinking = false %}{% endif %}", ""
)
"""A prompt that always opens the thought."""
