#!/usr/bin/env python3
"""Write goldens.json: what transformers renders of every conversation.

conversations.json has the conversations, own/ has small templates whose
renderings are stored as text where they are short. Of the templates in the
folder that is named, which belong to others, and of long renderings only
length and SHA-256 are stored.
A conversation that a template refuses has the message instead, one that it
fails at has nothing.

    python generate.py TEMPLATES
"""

import hashlib
import json
import sys
from datetime import datetime
from pathlib import Path

import jinja2
from transformers.utils import chat_template_utils

HERE = Path(__file__).resolve().parent
TODAY = datetime(2026, 11, 29)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def render(template, conversation):
    given = dict(conversation)
    messages = given.pop("messages")
    compiled = chat_template_utils._compile_jinja_template(template)
    compiled.environment.globals["strftime_now"] = TODAY.strftime
    rendered, _ = chat_template_utils.render_jinja_template(
        [messages], tools=given.pop("tools", None), documents=given.pop("documents", None),
        chat_template=template, add_generation_prompt=given.pop("add_generation_prompt", True),
        **SPECIAL, **given.pop("variables", {}))
    assert not given, given
    return rendered[0]


def golden(path, conversation, whole):
    try:
        text = render(path.read_text(), conversation)
    except jinja2.exceptions.TemplateError as error:
        # Only what the template itself raises is of this very type.
        return {"refused": str(error)} if type(error) is jinja2.exceptions.TemplateError else {}
    except (TypeError, KeyError, ValueError):
        return {}
    if whole and len(text) < 2000:
        return {"text": text}
    return {"bytes": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def main():
    conversations = json.loads((HERE / "conversations.json").read_text())
    folders = [(HERE / "own", True), (Path(sys.argv[1]), False)]
    goldens = {
        path.stem: {name: golden(path, conversation, whole) for name, conversation in conversations.items()}
        for folder, whole in folders for path in sorted(folder.glob("*.jinja"))
    }
    text = json.dumps(goldens, indent=1, ensure_ascii=False)
    (HERE / "goldens.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
