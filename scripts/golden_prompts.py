"""The 200 prompts of the golden numbers: questions in chat form, beginnings of prose and code, and odds and ends.

Only text lives here; ``golden_llamacpp.py`` turns it into the token ids of ``tests/golden/prompts.json``, which every
other script and test reads.
"""

from __future__ import annotations

from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"

TOPICS = (
    "the tides of the sea", "a bicycle with a broken chain", "how bread rises", "the history of paper", "prime numbers",
    "growing tomatoes on a balcony", "the migration of geese", "learning to play the violin", "the water cycle",
    "writing a letter to a friend", "volcanoes", "the rules of chess", "how a refrigerator works", "the city of Lisbon",
    "sorting a list of numbers", "sleep and memory", "the planet Saturn", "keeping bees", "a long journey by train",
    "photographs in black and white",
)  # fmt: skip

FORMS = (
    "Explain {} to a child in three sentences.",
    "What are the three most important facts about {}?",
    "Write a short poem about {}.",
    "Give me a numbered list of five questions that a beginner would ask about {}.",
    "Summarise in one line what one should know about {}.",
    "Tell a story that begins with {} and ends with rain.",
)

FRAGMENTS = (
    "The capital of France is",
    "Once upon a time, in a village at the edge of the forest, there lived",
    "def fibonacci(n):\n    ",
    "1, 1, 2, 3, 5, 8, 13,",
    "The quick brown fox",
    "Dear Sir or Madam,\n\nI am writing to",
    "import numpy as np\n\ndef softmax(x):\n",
    "SELECT name, COUNT(*) FROM orders",
    "Q: What is 17 + 25?\nA:",
    "Water boils at",
    "<html>\n<head>\n<title>",
    "La capital de España es",
    "Der Mond ist",
    "Il était une fois",
    "To make a cup of tea, first",
    "{\"name\": \"Ada\", \"age\": 36, \"city\":",
    "In 1969, the first",
    "The mitochondria is",
    "A haiku about autumn:\n",
    "Monday, Tuesday, Wednesday,",
    "for (int i = 0; i < n; i++) {\n",
    "The three laws of motion are:\n1.",
    "She opened the door and saw",
    "E = mc",
    "The opposite of hot is",
    "Ingredients:\n- 2 eggs\n- 200 g flour\n-",
    "class Stack:\n    def __init__(self):\n",
    "It was the best of",
    "Translate to German: Good morning, my friend.\nGerman:",
    "The largest ocean on Earth",
    "x = [i ** 2 for i in range(10)]\nprint(x)\n#",
    "Shakespeare was born in",
    "# Installation\n\n```bash\npip install",
    "The patient complained of",
    "One plus one equals two. Two plus two equals",
    "Abstract. In this paper we",
    "Breaking news:",
    "The train to Oslo leaves at",
    "红色的苹果",
    "🙂",
)  # fmt: skip


def chat(question: str) -> str:
    """One question in the model's ChatML form."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def text() -> str:
    """Prose, code and a table, written for this purpose."""
    return (GOLDEN / "text.txt").read_text(encoding="utf-8")


def prompts() -> list[str]:
    """200 prompts: 120 chats, 40 fragments, 40 stretches of the text of 60 to about 2,600 characters."""
    chats = [chat(form.format(topic)) for topic in TOPICS for form in FORMS]
    whole = text()
    stretches = [whole[start : start + length] for i in range(40) for start, length in [(i * 110, 60 + 65 * i)]]
    return chats + list(FRAGMENTS) + stretches
