"""rewards/language.py: a few sentences in many languages, each against each; then mixtures and what is left out."""

import itertools

import pytest

from hf_cascade.rewards.language import detect, foreign_share, language_of, language_reward, windows
from hf_cascade.rewards.verifiable import load_reward

# Two texts of each: a problem, and thinking about it.
TEXTS = {
    "en": (
        "A farmer has twelve cows and sells three of them. How many cows are left in the field after that?",
        "Let us think about it. The farmer has twelve cows, and three of them are sold, so there are nine left. "
        "Wait, we should check this: if we add the three that were sold to the nine, it is twelve again.",
    ),
    "fr": (
        "Un fermier a douze vaches et il en vend trois. Combien de vaches reste-t-il dans le pré après cela ?",
        "Réfléchissons. Le fermier a douze vaches, et trois sont vendues, donc il en reste neuf dans le pré. "
        "Vérifions : si on ajoute les trois vaches qui ont été vendues aux neuf autres, on en a de nouveau douze.",
    ),
    "de": (
        "Ein Bauer hat zwölf Kühe und verkauft drei von ihnen. Wie viele Kühe sind danach noch auf der Weide?",
        "Denken wir nach. Der Bauer hat zwölf Kühe, und drei davon werden verkauft, also sind es noch neun. "
        "Das prüfen wir: Wenn man die drei verkauften Kühe zu den neun addiert, dann sind es wieder zwölf.",
    ),
    "es": (
        "Un granjero tiene doce vacas y vende tres de ellas. ¿Cuántas vacas hay en el campo después de la venta?",
        "Pensemos en esto. El granjero tiene doce vacas y se venden tres, por lo que quedan nueve en el campo. "
        "Si sumamos las tres vacas que se han vendido a las nueve que quedan, son doce, como al principio.",
    ),
    "it": (
        "Un contadino ha dodici mucche e ne vende tre. Quante mucche ci sono nel campo dopo la vendita?",
        "Pensiamo. Il contadino ha dodici mucche e tre sono vendute, quindi ne restano nove nel campo. "
        "Se alle nove mucche che sono rimaste aggiungiamo le tre della vendita, ne abbiamo dodici, come prima.",
    ),
    "pt": (
        "Um fazendeiro tem doze vacas e vende três delas. Quantas vacas há no campo depois da venda, se não nasce uma?",
        "Vamos pensar. O fazendeiro tem doze vacas e três são vendidas, então há nove no campo. Se às nove vacas "
        "que não foram vendidas somamos as três da venda, são doze, como no começo do dia.",
    ),
    "nl": (
        "Een boer heeft twaalf koeien en verkoopt er drie. Hoeveel koeien zijn er daarna nog in de wei?",
        "Laten we nadenken. De boer heeft twaalf koeien en er worden drie verkocht, dus er zijn er nog negen. "
        "Als we de drie koeien die zijn verkocht bij de negen optellen, dan zijn het er weer twaalf.",
    ),
    "CYRILLIC": (
        "У фермера двенадцать коров, и он продаёт трёх из них. Сколько коров осталось на лугу?",
        "Подумаем. У фермера было двенадцать коров, три проданы, значит, осталось девять. Проверим сложением.",
    ),
    "CJK": (
        "农夫有十二头牛，卖掉了三头。请问田里还剩多少头牛？",
        "我们来想一想。农夫有十二头牛，卖掉三头，所以还剩九头。再验算一遍。",
    ),
    "ja": (
        "農家に牛が十二頭いて、三頭を売りました。牛は何頭残っていますか。",
        "考えてみましょう。十二頭から三頭を引くと、九頭になります。検算します。",
    ),
    "HANGUL": (
        "농부는 소가 열두 마리 있고 세 마리를 팔았습니다. 몇 마리가 남았습니까?",
        "생각해 봅시다. 열둘에서 셋을 빼면 아홉이 남습니다.",
    ),
    "ARABIC": (
        "لدى مزارع اثنتا عشرة بقرة وباع ثلاثا منها. كم بقرة بقيت في الحقل؟",
        "لنفكر. لدى المزارع اثنتا عشرة بقرة وباع ثلاثا، إذن بقيت تسع.",
    ),
    "GREEK": (
        "Ένας αγρότης έχει δώδεκα αγελάδες και πουλά τρεις. Πόσες μένουν;",
        "Ας σκεφτούμε. Από δώδεκα βγάζουμε τρεις και μένουν εννέα.",
    ),
    "DEVANAGARI": ("एक किसान के पास बारह गायें हैं और वह तीन बेचता है। कितनी बचीं?", "सोचते हैं। बारह में से तीन घटाने पर नौ बचती हैं।"),
}
ENGLISH, GERMAN, CHINESE = TEXTS["en"], TEXTS["de"], TEXTS["CJK"]


def reward_of(prompt, thinking, answer="\\boxed{9}", **columns):
    (given,) = language_reward([prompt], [f"[THINK]{thinking}[/THINK]{answer}"], **columns)
    return given


@pytest.mark.parametrize(("asked", "thought"), [*itertools.product(TEXTS, TEXTS)])
def test_every_language_against_every_other(asked, thought):
    assert language_of(TEXTS[asked][0]) == asked
    assert reward_of(TEXTS[asked][0], TEXTS[thought][1]) == (asked == thought)
    assert reward_of(TEXTS[asked][0], TEXTS[asked][1], TEXTS[thought][1]) == (asked == thought)


@pytest.mark.parametrize(
    "thinking",
    [
        "",
        "12 - 3 = 9",
        r"$x = \frac{12}{3}$ \[ y = \text{die Zahl der Kühe, die der Bauer noch hat} \]",
        "```python\n# " + GERMAN[1] + "\n```",
        "```\n" + GERMAN[1],  # cut off in its code
        "[asy] pair das, die, der, und; draw(die--der); draw(das--und); [/asy]",
        "Genau neun.",  # too short
        ENGLISH[1] + " This was shown by Wilhelm von der Heide and by Андрей Колмогоров (see 数学).",
        ENGLISH[1] * 24 + GERMAN[1],  # a quotation
        r"Let $\alpha$ be αβγ.",
    ],
)
def test_consistent(thinking):
    assert reward_of(ENGLISH[0], thinking) == 1


@pytest.mark.parametrize(
    "thinking",
    [
        (ENGLISH[1] + " ") * 3 + GERMAN[1] * 2,
        ENGLISH[1] * 4 + CHINESE[1] * 12,
        GERMAN[1] + r" $x = 12 - 3$ ```python" + "\nprint('the answer to that is in here')\n```",
        "".join(f"{word}{n}" for n, word in enumerate(CHINESE[1].split("。"))),  # no spaces
        " ".join(f"{word} $x_{n}$" for n, word in enumerate(GERMAN[1].split())),
    ],
)
def test_a_switch_is_not(thinking):
    assert reward_of(ENGLISH[0], thinking) == 0


def test_whose_language():
    system = {"role": "system", "content": GERMAN[1]}
    turns = [{"role": "user", "content": GERMAN[0]}, {"role": "assistant", "content": GERMAN[1]}]
    last = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ENGLISH[0]}]}
    answer = [{"role": "assistant", "content": r"\boxed{9}", "reasoning_content": ENGLISH[1]}]
    tool = [{"role": "assistant", "content": GERMAN[1]}, {"role": "tool", "content": GERMAN[1]}]
    logged = {}
    assert language_reward([[system, *turns, last]] * 2, [answer, tool + answer], log_metric=logged.__setitem__) == [
        1,
        1,
    ]
    assert logged == {"language_reward/unknown": 0}
    assert language_reward([[last]], [tool]) == [0]
    assert reward_of("12 - 3 = ?", GERMAN[1], log_metric=logged.__setitem__) == 1
    assert logged == {"language_reward/unknown": 1}
    assert language_reward([ENGLISH[0]], [[]]) == [1]


def test_without_the_form():
    assert language_reward([ENGLISH[0]] * 3, [f"[THINK]{GERMAN[1]}", GERMAN[1], ENGLISH[1]]) == [0, 0, 1]


@pytest.mark.parametrize("mark", ["a", "\\[", "$", "$$", "`", "\\begin{a}", "1", "\\boxed{", "[asy]", "é", "<think>"])
def test_no_text_takes_long(mark):
    """The test's time limit is the assertion."""
    assert reward_of(ENGLISH[0], mark * (200_000 // len(mark))) in (0, 1)


def test_windows_and_what_is_not_told():
    assert windows("") == []
    assert [len(window) for window in windows("abcd " * 200)] == [250, 250, 250, 249]
    assert detect("abc") is None
    assert detect("i i i i i i i i i i i i") is None  # one word is not enough
    assert detect("Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.") is None
    assert foreign_share("", "en") == 0
    assert load_reward("language_reward") is language_reward
