import ast
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from examples.finetune.data import retention
from examples.finetune.data.retention import (
    code_texts,
    knowledge_questions,
    prose_texts,
)


def test_questions_are_well_formed():
    questions = knowledge_questions()
    assert len(questions) >= 220
    assert all(count >= 20 for count in Counter(q.topic for q in questions).values())
    for asked in questions:
        assert re.fullmatch(r"[A-Z][^?\n]+[^ ]\?", asked.question), asked
        assert len(asked.choices) == len({c.lower() for c in asked.choices}) == 4, asked
        assert asked.answer in range(4)
        for choice in asked.choices:
            assert re.fullmatch(r"[A-Z0-9]([^ ]| (?! ))*[^ .]|[A-Z0-9]", choice), asked
            assert len(choice.split()) <= 6


def test_no_question_is_asked_twice():
    questions = knowledge_questions()
    words = [tuple(re.findall(r"\w+", q.question.lower())) for q in questions]
    assert len(set(words)) == len(questions)
    # Nor in the same choices with the same answer, reworded.
    facts = Counter((q.choices[q.answer], frozenset(q.choices)) for q in questions)
    assert max(facts.values()) == 1


def test_neither_place_nor_length_gives_the_answer_away():
    questions = knowledge_questions()
    places = Counter(q.answer for q in questions)
    assert max(places.values()) - min(places.values()) <= 1
    longest = shortest = 0
    for asked in questions:
        lengths = [len(choice) for choice in asked.choices]
        right = lengths.pop(asked.answer)
        longest += right > max(lengths)
        shortest += right < min(lengths)
    assert longest <= 0.27 * len(questions)
    assert shortest <= 0.27 * len(questions)


@pytest.mark.parametrize("texts", [prose_texts, code_texts])
def test_texts_are_enough_varied_and_of_a_length(texts):
    found = texts()
    assert len(set(found)) == len(found) >= 60
    assert all(300 <= len(text) <= 1500 for text in found)
    # No tokenizer in use needs more than five characters a token of such text.
    assert sum(map(len, found)) > 5 * 4000
    assert found == texts()


def test_texts_are_the_same_in_another_process():
    # Another process hashes strings differently.
    code = (
        "import json; from examples.finetune.data import retention;"
        "print(json.dumps([retention.prose_texts(), retention.code_texts()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [prose_texts(), code_texts()]


def test_prose_is_whole_sentences_without_markup():
    for text in prose_texts():
        assert "::=" not in text and "``" not in text and "***" not in text
        for paragraph in text.split("\n\n"):
            assert "\n" not in paragraph and "  " not in paragraph
            assert re.match(r"[\w\"“]", paragraph) and paragraph.endswith(".")
        letters = sum(character.isalpha() or character == " " for character in text)
        assert letters > 0.8 * len(text), text


def test_no_paragraph_of_prose_comes_twice():
    paragraphs = [p for text in prose_texts() for p in text.split("\n\n")]
    assert len(set(paragraphs)) == len(paragraphs)


def test_prose_paragraphs_join_lines_and_lose_marks():
    topic = (
        "A heading\n*********\n\nThe *value* of a built-\nin thing is **always**\n"
        "two.  It stays.\n\n   code = 1\n\n* An item.\n\nNote that:\n\n"
        "rule ::= this.\n\nChanged in version 3.6: Now it is.\n\nThe end."
    )
    assert list(retention._paragraphs(topic)) == [
        "The value of a built-in thing is always two. It stays.",
        "The end.",
    ]


def test_code_is_whole_functions():
    for text in code_texts():
        (function,) = ast.parse(text).body
        assert isinstance(function, ast.FunctionDef)


def test_a_python_without_sources_is_told():
    with pytest.raises(RuntimeError, match="no source of its module sys"):
        retention._source("sys")
    with pytest.raises(RuntimeError, match="no source of its module nowhere"):
        retention._source("nowhere")
