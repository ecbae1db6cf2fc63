"""LIBERO's instructions in other words, from a small grammar: the same things, sides and places.

Grade 1 changes the verbs, 2 also how one is addressed, 3 also what things are called.
"""

from __future__ import annotations

import re

import numpy as np

VERBS = {
    r"pick up": ("grab", "take", "lift"),
    r"place": ("set", "lay", "put"),
    r"put": ("place", "set", "lay"),
    r"open": ("pull open", "slide open"),
    r"close": ("shut", "push shut"),
    r"turn on": ("switch on", "start"),
    r"turn off": ("switch off", "shut off"),
    r"push": ("slide", "shove"),
    r"stack": ("pile", "set"),
}
DOORS = {"pull open": "swing open", "slide open": "swing open", "push shut": "swing shut"}
FRAMES = (
    "please {}",
    "could you {}",
    "i need you to {}",
    "your job is to {}",
    "robot, {}",
    "go ahead and {}",
    "now {}",
)
NAMES = {
    "black bowl": ("dark bowl", "bowl that is black"),
    "white bowl": ("pale bowl", "bowl that is white"),
    "yellow and white mug": ("yellow and white cup", "two-coloured mug"),
    "white mug": ("white cup", "porcelain cup"),
    "red mug": ("red cup", "red coffee cup"),
    "cookie box": ("box of cookies", "biscuit box"),
    "cream cheese box": ("box of cream cheese", "cream cheese package"),
    "cream cheese": ("box of cream cheese", "cream cheese package"),
    "alphabet soup": ("can of alphabet soup", "tin of letter soup"),
    "tomato sauce": ("can of tomato sauce", "tin of tomato sauce"),
    "bbq sauce": ("bottle of barbecue sauce", "barbecue sauce"),
    "salad dressing": ("bottle of salad dressing", "dressing for the salad"),
    "chocolate pudding": ("box of chocolate pudding", "chocolate dessert"),
    "orange juice": ("carton of orange juice", "juice carton"),
    "ketchup": ("bottle of ketchup", "ketchup bottle"),
    "butter": ("pack of butter", "packet of butter"),
    "milk": ("carton of milk", "milk carton"),
    "wine bottle": ("bottle of wine", "bottle"),
    "wine rack": ("rack for wine", "bottle rack"),
    "moka pots": ("coffee pots", "moka coffee makers"),
    "moka pot": ("coffee pot", "moka coffee maker"),
    "frying pan": ("skillet", "pan"),
    "microwave": ("microwave oven",),
    "stove": ("cooker", "hot plate"),
    "wooden cabinet": ("cupboard of wood", "wooden cupboard"),
    "cabinet shelf": ("shelf of the cabinet", "cupboard shelf"),
    "cabinet": ("cupboard", "chest of drawers"),
    "ramekin": ("ramekin dish", "small baking dish"),
    "basket": ("shopping basket", "hamper"),
    "tray": ("wooden tray", "serving tray"),
    "caddy": ("desk organizer", "desk caddy"),
    "plate": ("dinner plate", "dish plate"),
    "book": ("volume",),
    "bowl": ("small bowl", "round bowl"),
}
LEAST_VERBS, LEAST_FRAMES, LEAST_NAMES = 1, 2, 3  # the grades from which each is changed


def paraphrase(instruction: str, grade: int, rng: np.random.Generator) -> str:
    """Never the instruction itself. Each grade draws the same, and builds on the one below."""
    verbs = {verb: _pick(rng, words) for verb, words in VERBS.items()}
    frame, names = _pick(rng, FRAMES), {name: _pick(rng, words) for name, words in NAMES.items()}
    if re.search(r"\bclose\b|\bopen\b", instruction) and "drawer" not in instruction:
        verbs = {verb: DOORS.get(word, word) for verb, word in verbs.items()}
    text = instruction
    if grade >= LEAST_VERBS:
        text = _replace(text, verbs)
    if grade >= LEAST_NAMES:
        text = _replace(text, names)
    if grade >= LEAST_FRAMES:
        text = frame.format(text)
    return text


def _pick(rng: np.random.Generator, among: tuple[str, ...]) -> str:
    return among[rng.integers(len(among))]


def _replace(text: str, words: dict[str, str]) -> str:
    """All at once, the longest first, so that nothing is replaced twice."""
    known = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    return re.sub(rf"\b({known})\b", lambda found: words[found[1].replace("\\", "")], text)
