"""Prompts to measure on, of five kinds: how often a draft is right depends on the kind of text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from ssd.models.prompts import Prompt


@dataclass(frozen=True)
class PromptSet:
    """Prompts with a name. Each gets a turn's answer of its own."""

    name: str
    prompts: Sequence[Prompt]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(list(self.prompts)).encode()).hexdigest()


CODE = (
    "Write a Python function that returns the longest word of a sentence, without its punctuation.",
    "Write a C function that reverses a singly linked list in place, and explain each step in a comment.",
    "Write a SQL query that lists every customer with the number of their orders and the date of the last one.",
    "Write a JavaScript class for a stack with push, pop, peek and size, and three tests of it.",
    "This Python function should return the median of a list, and fails for an even length. Mend it:\n\n"
    "def median(values):\n    values.sort()\n    return values[len(values) // 2]",
    "Write a shell script that moves all files older than thirty days from one folder to another, and prints their names.",
    "Write a Python dataclass for a bank account, with a method that refuses to draw more than the balance.",
    "Explain what this regular expression matches, and rewrite it with comments: ^(\\d{4})-(0[1-9]|1[0-2])-(\\d{2})$",
)
MATHS = (
    "A tank holds 240 litres. One pipe fills it in 4 hours, another empties it in 6. How long does it take with both open?",
    "A shop lowers a price of 80 by 15 percent and then raises it by 15 percent. What is the price at the end?",
    "Three friends share 156 marbles so that each has twice as many as the one before. How many has each?",
    "A train goes 45 km in half an hour, stops for 10 minutes, and goes 60 km in 40 minutes. What is its mean speed?",
    "The sum of two numbers is 31 and their difference is 7. Find both, and show the steps.",
    "A garden of 12 by 9 metres gets a path of one metre around it. What is the area of the path?",
    "Anna reads 14 pages a day and Ben reads 9. Ben began 15 days earlier. After how many days has Anna read as much?",
    "A box has 5 red, 4 blue and 3 green balls. Two are drawn without putting one back. How likely are two of one colour?",
)
CHAT = (
    "What should I look at when I buy a used bicycle?",
    "My neighbour's dog barks every night. How do I talk to them about it without a quarrel?",
    "Explain to a ten-year-old why the moon seems to change its shape.",
    "I have eggs, rice, spinach and an onion. What can I cook in twenty minutes?",
    "What is the difference between weather and climate? Give an example of each.",
    "Help me plan three days in a city by the sea with two small children.",
    "How do I begin to run when I have not done any sport for ten years?",
    "Give me arguments for and against working from home four days a week.",
)
_REPORT = (
    "The town library will close for eight weeks from the first of June. The roof, which is from 1962, has leaked since the "
    "storms of last winter, and two rooms with old maps had to be cleared. The council has set aside 340,000 for the repair. "
    "Readers may return books at the town hall, and a bus with 2,000 books will stop at both schools on Tuesdays and Fridays. "
    "The reading groups meet in the church hall. The librarian, Ms Okafor, expects that the reading room will open again in the "
    "last week of July, with twelve new desks by the windows."
)
_LETTER = (
    "Dear tenants, on Thursday the water will be off from 8 to 12, because the meter in the cellar is to be replaced. Please fill a "
    "pot beforehand, and keep the taps closed, so that no air gets into the pipes. The lift will run, but the laundry room stays "
    "locked until the plumber has tested the pressure. Whoever needs warm water in the morning may use the shower in the flat on "
    "the ground floor, which is empty at present; Mr Lindqvist has the key. If the water looks brown afterwards, let it run for two "
    "minutes. The new meter sends its reading by radio, so nobody has to come into your flat in January any more."
)
SUMMARY = (
    f"Summarise this text in two sentences:\n\n{_REPORT}",
    f"List all dates, numbers and names of this text:\n\n{_REPORT}",
    f"Write this text again for readers of eight years:\n\n{_REPORT}",
    f"Write a headline and three bullet points for this text:\n\n{_REPORT}",
    f"Summarise this letter in two sentences:\n\n{_LETTER}",
    f"Say as a list what a tenant has to do, in the order of time:\n\n{_LETTER}",
    f"Turn this letter into a short notice for the door:\n\n{_LETTER}",
    f"Answer this letter with two polite questions:\n\n{_LETTER}",
)
FICTION = (
    "Write the beginning of a story about a lighthouse keeper who finds a letter in a bottle.",
    "Write a dialogue between an old clockmaker and a girl who wants to buy more time.",
    "Continue: The last bus had left an hour ago, and the woman on the bench still held two tickets.",
    "Write a fable about a heron and a frog, with a moral at the end.",
    "Describe a market in a town that floats on a river, through the eyes of a child.",
    "Write a poem of four stanzas about the first frost of a year.",
    "Write a scene in which two brothers argue about a boat that neither of them can sail.",
    "Write the diary of a cook on a ship during a week of storm.",
)

BUILT_IN = {
    name: PromptSet(name, prompts)
    for name, prompts in (("code", CODE), ("maths", MATHS), ("chat", CHAT), ("summary", SUMMARY), ("fiction", FICTION))
}
