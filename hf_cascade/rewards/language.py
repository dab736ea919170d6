r"""Reward for language: 1 where thinking and answer are in the prompt's language (paper section 5).

A detector without a model: writing systems by Unicode names, and for seven languages in Latin letters their most
frequent words. What it cannot tell counts as consistent.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

from hf_cascade.completions import THINKING_TAGS
from hf_cascade.rewards.form import thinking_and_answer

# Every number here is ours: paper silent.
WINDOW = 300  # characters that are told at once
LEAST_LETTERS = 12  # of a window: fewer tell nothing
LEAST_SHARE = 0.5  # of a window's letters that are of its writing system
KANA = 0.1  # share of kana among kana and Chinese characters from which on it is Japanese
SYLLABLES = {"CJK": 3, "ja": 3, "HANGUL": 2}  # letters that one character stands for
LEAST_WORDS = 4  # of a language, known by its most frequent ones
LEAST_DIFFERENT = 3  # of them: one word may be frequent in a language that is not known here
LEAST_LATIN_WORDS = 2  # of a prompt too short to tell its language: enough to expect its letters
LEAD = 1.4  # times as many as of the next language
FOREIGN = 0.1  # share of windows in other languages that is still consistent: quotations
FORMULA = 2000  # characters up to which an opening mark looks for its closing one: time grows with their product
NO_PROSE = re.compile(
    r"""```.*?(?:```|\Z) | `[^`\n]*` | \$[^$\n]{1,200}\$ | \\boxed\{[^{}]*\}
    | (?:\$\$ .{0,LIMIT}? \$\$) | (?:\\\[ .{0,LIMIT}? \\\]) | (?:\\\( .{0,LIMIT}? \\\))
    | (?:\[asy\] .{0,LIMIT}? \[/asy\]) | (?:\\begin\{(\w{1,20}\*?)\} .{0,LIMIT}? \\end\{\1\}) | \\[a-zA-Z]+""".replace(
        "LIMIT", str(FORMULA)
    ),
    re.DOTALL | re.VERBOSE,
)
ASCII = re.compile(r"[!-~]+")  # between spaces and other alphabets: Chinese has no spaces
MARKS = re.compile(r"[_^=<>{}|\\/@\d]")  # of formulas, code and addresses
TAGS = re.compile("|".join(re.escape(tag) for pair in THINKING_TAGS for tag in pair))
WORD = re.compile(r"[^\W\d_]+(?:['’](?=[^\W\d_]))?")
STOP_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the of and to is that we it in for as with this be are have so which on by from not if or then can an "
        "at let but there was each has what will would since because how these when you all find they their who "
        "she he his her more than into where only i' wait let' it' that' don' any does should one same get",
        "fr": "le la les de des du et est un une que qui on en dans pour il elle nous vous ce cette ces avec sur pas "
        "par plus ou donc si alors au aux l' d' qu' n' s' c' j' sont ont être avoir a comme mais son sa ses tout "
        "tous toute chaque combien car où soit ainsi deux leur je se ne peut fait calculons trouve",
        "de": "der die das und ist ein eine einen einem einer eines den dem des wir zu in mit von für auf nicht auch "
        "sich es wenn dann also sie er als aus bei wird werden sind hat haben wie was so oder im am kann dass "
        "daß um zum zur nach durch noch nur ich jede jeder aber man ihre seine alle über wieviel viele ihr uns "
        "hier",
        "es": "el la los las de del y es un una que en se por con para no al lo como su sus más o si entonces pero "
        "este esta esto son tiene cada hay ha qué cuántos cuánto está ser muy también donde porque cuando sobre "
        "todo todos toda nos le les ya hace tenemos podemos yo ella él pues sin entre",
        "it": "il lo la gli le di del della dei delle degli e è un una uno che in si per con non al alla ai alle da "
        "dal dalla come su sul nel nella o se allora ma questo questa sono ha ogni più quanti quanto anche dove "
        "perché quando tutti tutto ci abbiamo possiamo ed essere quindi i l' un' dell' nell' dall' all' c' lui "
        "lei suo sua loro ad hanno cui",
        "pt": "o a os as de do da dos das e é um uma que em se por com para não ao à no na nos nas como seu sua mais "
        "ou então mas este esta isto são tem cada há quantos quanto está ser também onde porque quando sobre "
        "todo todos pelo pela temos podemos ele ela logo pois eu já foi têm lhe isso num numa às aos seus suas "
        "qual sem entre",
        "nl": "de het een en van is dat we in te voor met op niet zijn er als dan dus die aan bij ook om of naar uit "
        "door heeft hebben wordt worden kan hoeveel elke elk wat hoe maar deze dit zich ik hij zij ze je nog "
        "over tot moet alle wij ons hun haar geen ieder iedere zo nu omdat waar wel was hem",
    }.items()
}


class LanguageReward:
    """1 where thinking and answer are each in the language of the last user message, else 0 (the paper weighs it 0.1).

    Code, formulas, numbers and addresses are left out, and names are few. Consistent is what is too short or ambiguous.
    A prompt that asks for another language than its own is not understood.
    """

    def __init__(self):
        self.__name__ = "language_reward"

    def __call__(
        self,
        prompts: list,
        completions: list,
        log_metric: Callable[[str, float], None] | None = None,
        **columns,
    ) -> list[float]:
        """
        Rewards of a batch.

        Args:
            prompts (`list`): text, or lists of messages.
            completions (`list`): text, or lists of messages, of which the last assistant message counts.
            log_metric (`Callable`, *optional*): TRL's. Gets the share of prompts whose language is not told, as
                `language_reward/unknown`.
            **columns: not looked at.
        """
        rewards, unknown = [], 0
        for prompt, completion in zip(prompts, completions, strict=True):
            language = language_of(_last_text(prompt, "user"))
            unknown += language is None
            parts = thinking_and_answer(completion, prompt) or (_last_text(completion, "assistant"),)
            rewards.append(float(language is None or all(foreign_share(part, language) <= FOREIGN for part in parts)))
        if log_metric is not None and rewards:
            log_metric(f"{self.__name__}/unknown", unknown / len(rewards))
        return rewards


language_reward = LanguageReward()


def language_of(text: str) -> str | None:
    """The language of most of a text's windows, see [`detect`]; `LATIN`: only the letters are told; `None`: nothing."""
    pieces = windows(text)
    found = Counter(filter(None, map(detect, pieces)))
    if found:
        return found.most_common(1)[0][0]
    words = [word for word in WORD.findall(" ".join(pieces)) if len(word) > 1]  # not the letters of formulas
    latin = all(_script(letter) in ("LATIN", None) for letter in "".join(words))
    return "LATIN" if latin and len(words) >= LEAST_LATIN_WORDS else None


def foreign_share(text: str, language: str) -> float:
    """Of a text's windows whose language is told, the share in another one; to `LATIN`, in other letters."""
    found = [other for other in map(detect, windows(text)) if other is not None]
    same = {language, *STOP_WORDS} if language == "LATIN" else {language}
    return sum(other not in same for other in found) / len(found) if found else 0.0


def windows(text: str) -> list[str]:
    """Prose of a text, without code and formulas, in pieces of equal length."""
    prose = NO_PROSE.sub(" ", TAGS.sub(" ", text))
    prose = " ".join(ASCII.sub(lambda run: " " if MARKS.search(run[0]) else run[0], prose).split())
    count = -(-len(prose) // WINDOW)
    length = -(-len(prose) // count) if count else 1
    return [prose[start : start + length] for start in range(0, len(prose), length)]


def detect(prose: str) -> str | None:
    """A language (`en`, `ja`), or a writing system in Unicode's word (`CYRILLIC`); `None`: too short, or ambiguous."""
    scripts = Counter(filter(None, map(_script, prose)))
    kana = scripts.pop("HIRAGANA", 0) + scripts.pop("KATAKANA", 0)
    if kana > KANA * (kana + scripts["CJK"]):
        scripts["ja"] = kana + scripts.pop("CJK", 0)
    for script in SYLLABLES:
        scripts[script] *= SYLLABLES[script]
    script, most = scripts.most_common(1)[0]
    if scripts.total() < LEAST_LETTERS or most <= LEAST_SHARE * scripts.total():
        return None
    return _by_words(prose) if script == "LATIN" else script


def _by_words(prose: str) -> str | None:
    """The language in Latin letters whose frequent words stand out."""
    words = [word.lower().replace("’", "'") for word in WORD.findall(prose) if len(word) > 1 or word.islower()]
    counts = {language: sum(word in known for word in words) for language, known in STOP_WORDS.items()}
    (language, most), (_, second) = Counter(counts).most_common(2)
    different = len(STOP_WORDS[language].intersection(words))
    return language if most >= max(LEAST_WORDS, LEAD * second) and different >= LEAST_DIFFERENT else None


@lru_cache(maxsize=2**16)
def _script(character: str) -> str | None:
    """The first word of a letter's Unicode name, its writing system; `None`: no letter, or one of formulas."""
    if not character.isalpha():
        return None
    script = unicodedata.name(character, "").partition(" ")[0]
    return None if script in ("", "MATHEMATICAL", "MICRO", "DOUBLE-STRUCK", "SCRIPT") else script


def _last_text(messages: str | list[dict], role: str) -> str:
    """Text of the last message of a role, thinking and all."""
    if isinstance(messages, str):
        return messages
    content = next((entry.get("content") for entry in reversed(messages) if entry.get("role") == role), "") or ""
    return content if isinstance(content, str) else " ".join(part.get("text") or "" for part in content)
