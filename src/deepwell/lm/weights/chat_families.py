"""Chat templates of our own, for models that carry none: written from what is known of each format.

Which one a model gets is told by the control tokens of its vocabulary. Facts: the published prompt formats of DeepSeek
(V3, R1, V3.1), OpenAI's ChatML, Llama 3, Mistral and Llama 2. The words around a list of tools are ours.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """A prompt format.

    Attributes:
        name: What people call it.
        needs: Control tokens that a vocabulary has if its model was trained on this format.
        source: The template.
        spelled: Marks of the format that are plain letters to the tokenizer, so that content must not hold them.
    """

    name: str
    needs: tuple[str, ...]
    source: str
    spelled: tuple[str, ...] = ()


_DEEPSEEK = """\
{%- set state = namespace(system='', outputs=false, answering=false) -%}
{%- for message in messages if message.role == 'system' -%}
    {%- set state.system = state.system + ('\\n\\n' if state.system else '') + message.content -%}
{%- endfor -%}
{{- bos_token + state.system -}}
{%- if tools -%}
    {{- '\\n\\n## Tools\\nThese functions can be called:\\n' -}}
    {%- for tool in tools -%}
        {{- (tool.function if tool.function is defined else tool) | tojson + '\\n' -}}
    {%- endfor -%}
{%- endif -%}
{%- for message in messages if message.role != 'system' -%}
    {%- if message.role != 'tool' and state.outputs -%}
        {{- '<｜tool▁outputs▁end｜>' -}}{%- set state.outputs = false -%}
    {%- endif -%}
    {%- if message.role == 'user' -%}
        {{- '<｜User｜>' + message.content -}}{%- set state.answering = false -%}
    {%- elif message.role == 'assistant' -%}
        {%- if not state.answering -%}
            {{- '<｜Assistant｜>' -}}
            {%- if thinking is defined and not thinking -%}{{- '</think>' -}}{%- endif -%}
        {%- endif -%}
        {%- if message.reasoning_content and message.tool_calls -%}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' -}}
        {%- endif -%}
        {{- message.content or '' -}}
        {%- if message.tool_calls -%}
            {{- '<｜tool▁calls▁begin｜>' -}}
            {%- for call in message.tool_calls -%}
                {{- ('\\n' if loop.index0 else '') + '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' -}}
                {{- call.function.name -}}
                {{- '\\n```json\\n' ~ call.function.arguments ~ '\\n```<｜tool▁call▁end｜>' -}}
            {%- endfor -%}
            {{- '<｜tool▁calls▁end｜>' -}}
        {%- endif -%}
        {{- eos_token -}}
        {%- set state.answering = false -%}
    {%- else -%}
        {%- if not state.outputs -%}{{- '<｜tool▁outputs▁begin｜>' -}}{%- set state.outputs = true -%}{%- endif -%}
        {{- '<｜tool▁output▁begin｜>' + message.content + '<｜tool▁output▁end｜>' -}}
        {%- set state.answering = true -%}
    {%- endif -%}
{%- endfor -%}
{%- if state.outputs -%}
    {{- '<｜tool▁outputs▁end｜>' -}}
{%- endif -%}
{%- if add_generation_prompt -%}
    {%- if not state.answering -%}{{- '<｜Assistant｜>' -}}{%- endif -%}
    {%- if thinking is defined and thinking -%}
        {{- '<think>\\n' -}}
    {%- elif thinking is defined and not state.answering -%}
        {{- '</think>' -}}
    {%- endif -%}
{%- endif -%}
"""

_CHATML = """\
{%- if tools -%}
    {{- '<|im_start|>system\\n' -}}
    {%- if messages[0].role == 'system' -%}{{- messages[0].content + '\\n\\n' -}}{%- endif -%}
    {{- 'These functions can be called:\\n<tools>\\n' -}}
    {%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}
    {{- '</tools>\\nTo call one, write its name and arguments as JSON:\\n<tool_call>\\n' -}}
    {{- '{"name": NAME, "arguments": {...}}\\n</tool_call><|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if not (tools and loop.first and message.role == 'system') -%}
        {%- if message.role == 'tool' -%}
            {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' -}}
        {%- else -%}
            {{- '<|im_start|>' + message.role + '\\n' -}}
            {%- if message.reasoning_content and message.tool_calls -%}
                {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' -}}
            {%- endif -%}
            {{- message.content or '' -}}
            {%- for call in message.tool_calls or [] -%}
                {{- ('\\n' if message.content or loop.index0 else '') + '<tool_call>\\n{"name": ' -}}
                {{- call.function.name | tojson ~ ', "arguments": ' ~ call.function.arguments ~ '}\\n</tool_call>' -}}
            {%- endfor -%}
            {{- '<|im_end|>\\n' -}}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

_LLAMA3 = """\
{{- bos_token -}}
{%- macro turn(role, content) -%}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + content + '<|eot_id|>' -}}
{%- endmacro -%}
{%- set first = messages[0].content | trim if messages[0].role == 'system' else '' -%}
{%- if tools -%}
    {%- set listed = namespace(text='These functions can be called, by an answer that is JSON alone, ') -%}
    {%- set listed.text = listed.text + '{"name": NAME, "parameters": {...}}:' -%}
    {%- for tool in tools -%}{%- set listed.text = listed.text + '\\n' + tool | tojson -%}{%- endfor -%}
    {{- turn('system', first + ('\\n\\n' if first else '') + listed.text) -}}
{%- elif messages[0].role == 'system' -%}
    {{- turn('system', first) -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'system' and loop.first -%}
    {%- elif message.role == 'tool' -%}
        {{- turn('ipython', message.content) -}}
    {%- elif message.tool_calls -%}
        {%- for call in message.tool_calls -%}
            {%- set named = '{"name": ' ~ call.function.name | tojson -%}
            {{- turn('assistant', named ~ ', "parameters": ' ~ call.function.arguments ~ '}') -}}
        {%- endfor -%}
    {%- else -%}
        {{- turn(message.role, message.content | trim) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
"""

_INST = """\
{%- if tools -%}{{- raise_exception('this format has no place for tools') -}}{%- endif -%}
{%- set state = namespace(system='', asked=false) -%}
{{- BEGIN -}}
{%- for message in messages -%}
    {%- if message.role == 'system' and loop.first -%}
        {%- set state.system = SYSTEM -%}
    {%- elif message.role == 'user' and not state.asked -%}
        {{- TURN -}}
        {%- set state.system = '' -%}{%- set state.asked = true -%}
    {%- elif message.role == 'assistant' and state.asked -%}
        {{- ' ' + message.content | trim + END -}}{%- set state.asked = false -%}
    {%- else -%}
        {{- raise_exception('this format has a system message at most once, first; then user and assistant in turn') -}}
    {%- endif -%}
{%- endfor -%}
"""


def _inst(begin: str, system: str, turn: str, end: str) -> str:
    parts = {"BEGIN": begin, "SYSTEM": system, "TURN": turn, "END": end}
    source = _INST
    for name, text in parts.items():
        source = source.replace(name, text)
    return source


_LLAMA2 = _inst(
    "''",
    "'<<SYS>>\\n' + message.content | trim + '\\n<</SYS>>\\n\\n'",
    "bos_token + '[INST] ' + state.system + message.content | trim + ' [/INST]'",
    "' ' + eos_token",
)
_MISTRAL = _inst(
    "bos_token",
    "message.content | trim + '\\n\\n'",
    "'[INST] ' + state.system + message.content | trim + '[/INST]'",
    "eos_token",
)

FAMILIES = (
    Family("deepseek", ("<｜User｜>", "<｜Assistant｜>"), _DEEPSEEK),
    Family("chatml", ("<|im_start|>", "<|im_end|>"), _CHATML),
    Family("llama3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), _LLAMA3),
    Family("mistral", ("[INST]", "[/INST]"), _MISTRAL),
    Family("llama2", ("<s>", "</s>"), _LLAMA2, spelled=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")),
)
"""The formats, the most telling control tokens first."""


def family_of(controls: Collection[str]) -> Family | None:
    """The first format whose control tokens a vocabulary has."""
    return next((family for family in FAMILIES if all(token in controls for token in family.needs)), None)
