"""Writes ../fixtures/templates/: real chat templates, and what `transformers` renders with them.

    pip install transformers==5.23.0 jinja2==3.1.6
    python template_reference.py <llama.cpp>/models/templates ../fixtures/templates

The templates come from llama.cpp (MIT), which collects them from the models' publishers.
"""
import json
import shutil
import sys
from datetime import datetime as RealDatetime
from pathlib import Path

from transformers.utils import chat_template_utils

TEMPLATES = """
GLM-4.6 GLM-4.7-Flash HuggingFaceTB-SmolLM3-3B LFM2-8B-A1B LFM2.5-8B-A1B LFM2.5-Instruct
Mistral-Small-3.2-24B-Instruct-2506 Qwen-QwQ-32B Qwen-Qwen2.5-7B-Instruct
Qwen-Qwen3-0.6B Qwen3-Coder Qwen3.5-4B deepseek-ai-DeepSeek-R1-Distill-Qwen-32B deepseek-ai-DeepSeek-V3.1
deepseek-ai-DeepSeek-V3.2 deepseek-ai-DeepSeek-V4 google-gemma-2-2b-it google-gemma-4-31B-it
meta-llama-Llama-3.2-3B-Instruct meta-llama-Llama-3.3-70B-Instruct microsoft-Phi-3.5-mini-instruct
mistralai-Ministral-3-14B-Reasoning-2512 mistralai-Mistral-Nemo-Instruct-2407 openai-gpt-oss-120b
unsloth-mistral-Devstral-Small-2507
""".split()

NOW = RealDatetime(2026, 3, 7, 14, 5, 9)


class Datetime(RealDatetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = Datetime


def function(name, description, properties, required):
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    function(
        "get_weather",
        'The weather in a "city"; <now> & later.',
        {
            "city": {"type": "string", "description": "Its name, e.g. München"},
            "days": {"type": "integer", "minimum": 1, "maximum": 7, "default": 1},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        },
        ["city"],
    ),
    function(
        "search",
        "Finds documents",
        {
            "query": {"type": "string"},
            "filters": {
                "type": "object",
                "properties": {"tags": {"type": "array", "items": {"type": "string"}}, "exact": {"type": "boolean"}},
                "required": ["tags"],
            },
            "score": {"type": ["number", "null"], "description": "At least", "default": 0.25},
        },
        ["query", "filters"],
    ),
]


def call(identifier, name, arguments):
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


def system(content):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, reasoning=None, calls=None):
    message = {"role": "assistant", "content": content}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if calls is not None:
        message["tool_calls"] = calls
    return message


def tool(identifier, name, content):
    return {"role": "tool", "tool_call_id": identifier, "name": name, "content": content}


WEATHER = [call("abc123456", "get_weather", {"city": "Zürich", "days": 2})]
SEARCHES = [
    call("call00001", "search", {"query": 'a "b" \\ \n c/d <e>', "filters": {"tags": ["x", "y"], "exact": True}, "score": None}),
    call("call00002", "get_weather", {"city": "東京 🌸", "days": 1, "unit": "celsius"}),
]
CASES = [
    {"messages": [user("Hi")]},
    {"messages": [system("Be brief."), user("  Grüße aus 東京 🌸\n")]},
    {"messages": [system("Be brief."), user("One"), assistant("Eins"), user("Two"), assistant("Zwei\n"), user("Three?")]},
    {"messages": [user("Think."), assistant("56", reasoning="7 times 8"), user("And now?")]},
    {"messages": [system("Be brief."), user("Hi")], "reasoning_effort": "medium"},
    {"messages": [system("Be brief."), user("Hi")], "reasoning_effort": "none"},
    {"messages": [user("Hi")], "reasoning_effort": "high"},
    {"messages": [user("Weather?")], "tools": TOOLS},
    {"messages": [system("Be brief."), user("Weather?")], "tools": TOOLS, "reasoning_effort": "none"},
    {
        "messages": [system("Be brief."), user("Weather?"), assistant("", calls=WEATHER), tool("abc123456", "get_weather", '{"sky": "clear"}')],
        "tools": TOOLS,
    },
    {
        "messages": [
            system("Be brief."),
            user("Both, please."),
            assistant("I look.", reasoning="Two calls\nare needed.", calls=SEARCHES),
            tool("call00001", "search", "nothing found"),
            tool("call00002", "get_weather", "23°"),
            assistant("Warm.", reasoning="Sum it up."),
            user("Thanks! <tool_call>"),
        ],
        "tools": TOOLS,
        "reasoning_effort": "medium",
    },
    {"messages": [user("Count."), assistant("One, two,  ")], "continue_final_message": True},
]
VARIABLES = {"bos_token": "<BOS>", "eos_token": "<EOS>"}


def render(source, case):
    case = dict(case)
    effort = case.pop("reasoning_effort", None)
    if effort is not None:
        # Each family has its own name for the switch.
        case["enable_thinking"] = case["thinking"] = effort != "none"
        case["reasoning_effort"] = "low" if effort == "none" else effort
    continued = case.pop("continue_final_message", False)
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            conversations=[case.pop("messages")],
            tools=case.pop("tools", None),
            chat_template=source,
            continue_final_message=continued,
            add_generation_prompt=not continued,
            **VARIABLES,
            **case,
        )
    except Exception as error:  # what a template refuses is part of the reference
        print(f"    refused: {type(error).__name__}: {str(error)[:100]}")
        return None
    return rendered[0]


def main(source, out):
    out = Path(out)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    expected = {}
    for name in TEMPLATES:
        print(name)
        text = (Path(source) / f"{name}.jinja").read_text(encoding="utf-8")
        (out / f"{name}.jinja").write_text(text, encoding="utf-8")
        expected[name] = [render(text, case) for case in CASES]
    reference = {"now": int((NOW - RealDatetime(1970, 1, 1)).total_seconds()), "cases": CASES, "expected": expected}
    (out / "reference.json").write_text(json.dumps(reference, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
