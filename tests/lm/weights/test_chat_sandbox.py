"""Templates from the internet: what they may do, and that nothing else happens."""

import json

import pytest

from deepwell.errors import ModelFileError, UsageError
from deepwell.lm.weights import chat_sandbox
from deepwell.lm.weights.chat import ChatTemplate

ASK = [{"role": "user", "content": 'Grüß <b> & "q"'}]


def _text(source: str) -> str:
    return ChatTemplate(source, "test template").render(ASK).text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ {'ü': '<' } | tojson }}", '{"ü": "<"}'),
        ("{{ {'a': [1]} | tojson(indent=2) }}", json.dumps({"a": [1]}, indent=2)),
        (
            "{% for x in [1, 2, 3, 4] %}{% if x == 2 %}{% continue %}{% elif x == 4 %}{% break %}{% endif %}"
            "{{ x }}{% endfor %}",
            "13",
        ),
        ("{% generation %}a{{ 1 }}{% endgeneration %}b", "a1b"),
        ("  {% if true %}\n  x\n  {% endif %}\ny", "  x\ny"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ missing }}|{{ messages[0].missing }}|{{ (missing or 'x') ~ 1 }}", "||x1"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{{ loop.last }}{{ loop.length }}{% endfor %}", "a1True1"),
        ("{% for c in messages[0].content[::-1][:3] %}{{ c }}{% endfor %}", '"q"'),
        ("{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, b=3) }}", "1213"),
        (
            "{% set n = namespace(x='') %}{% for i in range(3) %}{% set n.x = n.x + i|string %}{% endfor %}{{ n.x }}",
            "012",
        ),
        ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='role') | join(',') }}", "user"),
        (
            "{{ 'a-b'.split('-')[-1].strip().upper() }}{{ '%02d' % 7 }}{{ 'ab' * 2 }}{{ 'x' | indent(2, true) }}",
            "B07abab  x",
        ),
        ("{% for x in [[1, [2]]] recursive %}{{ x if x is not iterable else loop(x) }}{% endfor %}", "12"),
        (
            "{% for x in messages | map(attribute='role') %}{{ loop.index }}/{{ loop.length }}{{ x }}{% endfor %}",
            "1/1user",
        ),
        ("{{ 2.456 | round(1) }}{{ [3, 1] | sort | first }}", "2.51"),
    ],
)
def test_what_templates_of_the_hub_use(source: str, text: str) -> None:
    assert _text(source) == text


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m() %}{% for a in range(9999) %}{{ m() }}{% endfor %}{% endmacro %}{{ m() }}",
        "{% for a in range(90000) %}{% for b in range(90000) %}xxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}"
        "{% for a in range(60) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for a in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='x' * 9999999, y=[]) %}"
        "{% for a in range(999) %}{% set ns.y = ns.y + [ns.x|upper] %}{% endfor %}",
        "{% set ns = namespace(x='x' * 9999999, y=[]) %}"
        "{% for a in range(999) %}{% set ns.y = ns.y + [ns.x[1:]] %}{% endfor %}",
        "{{ 'x' * 999999999999 }}",
        "{{ [0] * 999999999999 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ 9 ** 999999999 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ 'x'.ljust(999999999) }}",
        "{{ 'x' | center(999999999) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ ('x' * 99999) | replace('x', 'y' * 99999) }}",
        "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
        "{{ ('y' * 99999).join(['a'] * 99999) }}",
        "{{ (['a'] * 99999) | join('y' * 99999) }}",
        "{{ 'x' | indent(999999999) }}",
        "{{ {} | tojson(indent=999999999) }}",
        "{{ range(999999999) | list }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
        "x" * 300_000,
        "{{ 'x'['ljust'](999999999) }}",
        "{{ 'x' | attr('ljust')(999999999) }}",
        "{{ ['x'] | map('attr', 'ljust') | list | first }}{{ (['x'] | map('attr', 'zfill') | first)(999999999) }}",
    ],
)
def test_a_template_that_never_ends_or_makes_gigabytes_is_stopped(source: str) -> None:
    with pytest.raises(ModelFileError, match="test template"):
        _text(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ ''['__class__'].x }}",
        "{{ ('' | attr('__class__')).x }}",
        "{{ raise_exception.__globals__ }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{{ cycler.__init__ }}",
        "{{ open('/etc/passwd') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'] }}",
    ],
)
def test_a_template_does_not_get_at_python(source: str) -> None:
    with pytest.raises(ModelFileError, match="test template"):
        _text(source)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("a\nb\n{% if %}", 3),
        ("a\n{{ 1 // 0 }}", 2),
        ("{# x #}\n\n{{ messages[0].content + 1 }}", 3),
        ("\n{% endfor %}", 2),
    ],
)
def test_an_error_names_the_template_and_its_line(source: str, line: int) -> None:
    with pytest.raises(ModelFileError, match=rf"the test template, line {line}: "):
        _text(source)


def test_a_refusal_carries_the_templates_words() -> None:
    with pytest.raises(UsageError, match="the test template refuses this chat: roles must alternate"):
        _text("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(200) %}{% endfor %}",
        "{% macro m() %}{% endmacro %}{% for a in range(60) %}{{ m() }}{% endfor %}",
        "{% set many = [" + "1, " * 200 + "] %}{% for a in many %}{% endfor %}",
    ],
)
def test_turns_and_calls_are_counted(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_sandbox, "MAX_STEPS", 150)
    with pytest.raises(ModelFileError, match="takes more than 150 steps"):
        _text(source)


def test_time_is_up_at_some_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_sandbox, "MAX_SECONDS", -1.0)
    with pytest.raises(ModelFileError, match="runs for more than"):
        _text("{% for x in [1, 2] %}{{ x }}{% endfor %}")


def test_a_long_honest_chat_fits_the_budget() -> None:
    turns = [{"role": role, "content": "word " * 200} for _ in range(1000) for role in ("user", "assistant")]
    template = ChatTemplate("{% for m in messages %}{{ '<|' + m.role + '|>' + m.content | trim }}{% endfor %}", "t")
    assert len(template.render([*turns, *ASK]).text) > 2_000_000
