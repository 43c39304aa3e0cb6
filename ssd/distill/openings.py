"""The first words of the made-up user messages. They spread the chats over the domains that a draft is used for."""

from __future__ import annotations

import random

OWN = "own"  # the domain of a user's own prompts
SHARES = {"code": 0.32, "maths": 0.38, "writing": 0.13, "questions": 0.17}


def _list(text: str) -> list[str]:
    return [" ".join(item.split()) for item in text.split("|")]


_NAMES = _list("Anna|Ben|Carla|David|Elena|Farid|Grace|Hugo|Ines|Jamal|Kate|Liam|Maria|Noah|Olga|Pedro|Rosa|Sam|Tina|Victor")
_THINGS = _list(
    "apples|books|pens|cookies|tickets|marbles|stamps|flowers|chairs|boxes|eggs|shirts|balls|candles|bottles|coins|cups"
)
_PLACES = _list("farm|bakery|school|library|factory|shop|garden|restaurant|museum|cinema|market|hotel|zoo|bus|kitchen")
_SUBJECTS = _list(
    """a list of numbers|a string|a dictionary|a matrix|a binary tree|a linked list|two sorted lists|a sentence|a date|a text file|
    prime numbers|the Fibonacci sequence|a stack|a queue|a graph|a bank account|a word count|a temperature|a palindrome|brackets"""
)
_VERBS = _list("sorts|reverses|counts|checks|finds|computes|removes|merges|filters|returns|parses|prints|converts|groups|sums")
_NOUNS = _list("items|words|numbers|values|text|pairs|list|digits|string|lines|points|total")
_TOPICS = _list(
    """the ocean|a small town|music|the history of Rome|healthy food|space travel|climate|friendship|a lost key|learning a language|
    volcanoes|trains|the human heart|electric cars|chess|a job interview|gardening|photography|sleep|money|dogs|mountains|the moon|
    a detective|ancient Egypt|football|the internet|vaccines|dreams|tea|bridges|a dragon|teamwork|stress|poetry|economics"""
)

# First words of a user's message; each {name} in braces is replaced by a random word.
OPENINGS: dict[str, tuple[str, ...]] = {
    "code": (
        "Write a Python function that {verb}",
        "Write a Python function to work with {subject}",
        "Write a function in Python that takes {subject} and {verb}",
        "def ",
        "def {verb}_{noun}(",
        "Complete this function:\n\ndef {verb}_{noun}(",
        "import math\n\ndef ",
        "from typing import List\n\ndef {verb}_{noun}(",
        "How do I {plain} {subject} in Python",
        "Here is my code:\n",
        "Write a class in Python for {subject}",
        "Explain what this code does:\n",
        "Write a JavaScript function that {verb}",
        "Write an SQL query that {verb}",
        "Implement {subject} in",
        "Fix the bug in this Python function:\n",
    ),
    "maths": (
        "{name} has {number} {things}.",
        "{name} buys {number} {things}",
        "A {place} has {number} {things}",
        "{name} and {other} have",
        "If {name} reads {number} pages",
        "{name} earns ${number}",
        "There are {number} {things} in a {place}.",
        "A train travels at {number}",
        "How many {things}",
        "{name} is {number} years old.",
        "Every day {name}",
        "A {place} sells {things} for ${number}",
        "What is {number} times",
        "Solve for x: ",
        "Calculate the",
        "In a class of {number} students",
    ),
    "writing": (
        "Write a short story about {topic}",
        "Write an email to",
        "Write a poem about {topic}",
        "Write a blog post about {topic}",
        "Rewrite this sentence",
        "Summarize the following",
        "Write a persuasive",
        "Describe {topic}",
        "Imagine you are",
        "Write a dialogue between",
        "Edit the following paragraph",
        "Give me a plan for",
    ),
    "questions": (
        "What is the difference between",
        "What are some",
        "How does {topic}",
        "Why do",
        "Explain {topic}",
        "Explain how",
        "Who was",
        "Can you help me",
        "Give me five",
        "Compare",
        "What would happen if",
        "Tell me about {topic}",
        "Is it true that",
        "How can I",
        "List",
        "",
    ),
}


def opening(domain: str, rng: random.Random) -> str:
    """Random first words of a message of this domain."""
    verb = rng.choice(_VERBS)
    name, other = rng.sample(_NAMES, 2)
    words = {
        "verb": verb,
        "plain": verb.removesuffix("s"),
        "noun": rng.choice(_NOUNS),
        "subject": rng.choice(_SUBJECTS),
        "topic": rng.choice(_TOPICS),
        "name": name,
        "other": other,
        "things": rng.choice(_THINGS),
        "place": rng.choice(_PLACES),
        "number": str(rng.choice((rng.randint(2, 20), rng.randint(10, 100), 10 * rng.randint(2, 60)))),
    }
    return rng.choice(OPENINGS[domain]).format_map(words)
