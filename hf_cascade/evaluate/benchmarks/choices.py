"""Questions with options that are scored by likelihood: MMLU, MMLU-Redux, MMMLU, ARC-Challenge, RACE (paper section 6).

Loaders give each row its whole prompt (`context`), the continuations whose likelihoods are compared (`continuations`),
and the place of the right one (`target`), so that a task's text does not depend on lm-eval's sampler of shots.
"""

import os
import re
from string import ascii_uppercase

from hf_cascade import assets
from hf_cascade.evaluate.benchmarks.data import VARIABLE, MissingData, need, read
from hf_cascade.evaluate.benchmarks.dataset_folder import load as load_files
from hf_cascade.evaluate.conformance.case import Case

LETTERS = ascii_uppercase
MMLU = "cais/mmlu"
MMLU_COLUMNS = ("question", "subject", "choices", "answer")
SHOTS = 5  # paper Tables 2 and 3, "5-shot"
LANGUAGES = {"de": "DE_DE", "es": "ES_LA", "fr": "FR_FR", "it": "IT_IT", "pt": "PT_BR"}
LANGUAGES |= {"zh": "ZH_CN", "ja": "JA_JP", "ko": "KO_KR"}
ARC_SHOTS = "evals/tasks/cascade/shots/arc_challenge.jsonl"
SUBJECTS = """
abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
college_computer_science college_mathematics college_medicine college_physics computer_security conceptual_physics
econometrics electrical_engineering elementary_mathematics formal_logic global_facts high_school_biology
high_school_chemistry high_school_computer_science high_school_european_history high_school_geography
high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics
high_school_physics high_school_psychology high_school_statistics high_school_us_history high_school_world_history
human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing
medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting
professional_law professional_medicine professional_psychology public_relations security_studies sociology
us_foreign_policy virology world_religions
""".split()  # the 57 of MMLU, which are the configs of MMLU-Redux


def question(text: str, options: list[str], answer: int | None = None) -> str:
    """One question as MMLU's own code writes it, up to `Answer:`; of a shot, with its letter and an empty line."""
    lines = [
        text.strip(),
        *(f"{letter}. {option}" for letter, option in zip(LETTERS[: len(options)], options, strict=True)),
    ]
    return "\n".join(lines) + "\nAnswer:" + ("" if answer is None else f" {LETTERS[answer]}\n\n")


def about(subject: str) -> str:
    """The line before the shots, as in MMLU's own code."""
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"


def mmlu(repo: str = MMLU, config: str = "all", **metadata) -> dict:
    """Test rows of MMLU, with the five `dev` rows of their own subject as shots."""
    rows = _rows(repo, "test", config, MMLU_COLUMNS)
    heads = mmlu_heads({row["subject"] for row in rows})
    for row in rows:
        context = heads[row["subject"]] + question(row["question"], row["choices"])
        _lettered(row, context, len(row["choices"]), place(row["answer"], row["choices"], repo))
    return _test(rows)


def mmlu_redux(repo: str, **metadata) -> dict:
    """
    Rows of MMLU-Redux with a usable label ([`corrected`]), and MMLU's `dev` rows of their subject as shots.

    The Hub has a config for each of 57 subjects. A folder may hold some of them, or one file with a column `subject`.
    """
    rows, kept = _redux_rows(repo), []
    heads = mmlu_heads({row["subject"] for row in rows})
    for row in rows:
        target = corrected(row, repo)
        if target is not None:
            context = heads[row["subject"]] + question(row["question"], row["choices"])
            kept.append(_lettered(row, context, len(row["choices"]), target))
    if not kept:
        raise MissingData(f"{repo}: no row has a usable label")
    return _test(kept)


def corrected(row: dict, repo: str = "MMLU-Redux") -> int | None:
    """
    The right option of a row of MMLU-Redux; `None` where the annotators leave none, and the row is not asked.

    `ok` rows keep MMLU's label. `wrong_groundtruth` rows take `correct_answer`: a letter, an index from 0, or an
    option's text; one that reads as two different options, or as none, is not usable. Rows of the other types (unclear,
    no or several right options, `expert`) are left out.
    """
    if row["error_type"] == "ok":
        return place(row["answer"], row["choices"], repo)
    if row["error_type"] != "wrong_groundtruth" or row.get("correct_answer") is None:
        return None
    text = str(row["correct_answer"]).strip()
    letter, readings = text.strip("()."), set()
    if len(letter) == 1 and letter in LETTERS[: len(row["choices"])]:
        readings.add(LETTERS.index(letter))
    if text.isdecimal() and int(text) < len(row["choices"]):
        readings.add(int(text))
    readings |= {at for at, option in enumerate(row["choices"]) if str(option).strip().lower() == text.lower()}
    return readings.pop() if len(readings) == 1 else None


def mmmlu(repo: str, config: str, **metadata) -> dict:
    """Test rows of one language of MMMLU; shots are the first five other rows of the subject, in the same language."""
    rows = _rows(repo, "test", config, ("Question", "A", "B", "C", "D", "Answer", "Subject"))
    first: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        # some languages have file names for subjects, such as anatomy_test.csv_de-DE.csv
        row["Subject"] = re.sub(r"_test\.csv.*", "", str(row["Subject"]))
        for column in ("Question", "A", "B", "C", "D"):
            row[column] = str(row[column])
        row["target"] = place(row["Answer"], list("ABCD"), f"{repo} {config}")
        first.setdefault(row["Subject"], []).append(at)
    texts = [[row["Question"], [row[letter] for letter in "ABCD"]] for row in rows]
    heads: dict[tuple, str] = {}
    for at, row in enumerate(rows):
        shots = tuple(other for other in first[row["Subject"]][: SHOTS + 1] if other != at)[:SHOTS]
        if len(shots) < SHOTS:
            raise MissingData(f"{repo} {config}: {SHOTS} shots need {SHOTS + 1} rows about {row['Subject']}")
        if shots not in heads:
            asked = "".join(question(*texts[other], rows[other]["target"]) for other in shots)
            heads[shots] = about(row["Subject"]) + asked
        _lettered(row, heads[shots] + question(*texts[at]), 4, row["target"])
    return _test(rows)


def arc_challenge(repo: str, config: str, **metadata) -> dict:
    """Test rows of ARC-Challenge, three to five options each, asked for letters after five fixed shots."""
    rows = _rows(repo, "test", config, ("question", "choices", "answerKey"))
    shots = load_files([assets.find(ARC_SHOTS)])
    head = "".join(question(row["question"], row["choices"]["text"], _key(row, repo)) for row in shots)
    for row in rows:
        options = row["choices"]["text"]
        _lettered(row, head + question(row["question"], options), len(options), _key(row, repo))
    return _test(rows)


def race(repo: str, config: str, **metadata) -> dict:
    """
    Of each article of RACE its last question, after the article and its other questions with their answers.

    The text is that of lm-eval's `race`, which reads the same questions in another layout.
    """
    articles: dict[str, list[dict]] = {}
    for row in _rows(repo, "test", config, ("example_id", "article", "question", "options", "answer")):
        articles.setdefault(row["example_id"], []).append(row)
    asked = []
    for *others, last in articles.values():
        context = f"Article: {last['article']}\n\n"
        for row in others:
            answer = row["options"][place(row["answer"], row["options"], repo)]
            if row["question"].endswith("  _  ."):  # the answer fills the blank
                context += f"{row['question'][:-5]}{answer}\n"
            else:
                context += f"Question: {row['question']}\nAnswer: {answer}\n"
        target = place(last["answer"], last["options"], repo)
        row = {**last, "context": context + last["question"], "target": target}
        asked.append({**row, "continuations": last["options"]})
    return _test(asked)


def place(answer, options, repo: str) -> int:
    """
    The place of the right option, from an index from 0 or a letter.

    Raises:
        ValueError: it is neither, or there is no such option, or the options are no list.
    """
    if not isinstance(options, list):
        raise ValueError(f"{repo}: options must be a list, not {options!r}")
    found = answer
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in LETTERS:
        found = LETTERS.index(answer.strip().upper())
    if not isinstance(found, int) or not 0 <= found < len(options):
        raise ValueError(
            f"{repo}: answer {answer!r} is not one of {len(options)} options (an index from 0, or a letter)"
        )
    return found


def mmlu_heads(subjects: set[str]) -> dict[str, str]:
    """
    What stands before a question about each subject: the line about it, and MMLU's five `dev` rows with their letters.

    Raises:
        MissingData: there are fewer of them.
    """
    shots: dict[str, list[str]] = {subject: [] for subject in sorted(subjects)}
    for row in _rows(MMLU, "dev", "all", MMLU_COLUMNS):
        if row["subject"] in shots:
            answer = place(row["answer"], row["choices"], MMLU)
            shots[row["subject"]].append(question(row["question"], row["choices"], answer))
    for subject, given in shots.items():
        if len(given) < SHOTS:
            raise MissingData(f"{MMLU}: {SHOTS} shots about {subject!r} are needed; split dev has {len(given)}")
    return {subject: about(subject) + "".join(given[:SHOTS]) for subject, given in shots.items()}


def _redux_rows(repo: str) -> list[dict]:
    """Rows of all configs, each with its `subject`."""
    columns = ("question", "choices", "answer", "error_type", "correct_answer")
    is_local, missing, found = bool(os.environ.get(VARIABLE)), None, []
    if is_local:
        try:
            return _rows(repo, "test", None, (*columns, "subject"))
        except MissingData:
            pass  # then there is a file for each subject
    for subject in SUBJECTS:
        try:
            rows = _rows(repo, "test", subject, columns)
        except MissingData as error:
            if not is_local:
                raise
            missing = missing or error
        else:
            found += [{**row, "subject": subject} for row in rows]
    if not found:
        raise missing
    return found


def _key(row: dict, repo: str) -> int:
    """Place of ARC's `answerKey` among its labels, which are letters or digits from 1."""
    labels = [str(label).strip() for label in row["choices"]["label"]]
    if str(row["answerKey"]).strip() not in labels:
        raise ValueError(f"{repo}: answerKey {row['answerKey']!r} is none of the labels {labels}")
    return labels.index(str(row["answerKey"]).strip())


def _rows(repo: str, split: str, config: str | None, columns: tuple[str, ...]) -> list[dict]:
    rows = read(repo, split, config)
    need(rows, f"{repo} {config}" if config else repo, columns)
    return rows.select_columns(list(columns)).to_list()


def _lettered(row: dict, context: str, options: int, target: int) -> dict:
    """The row, with what its likelihood requests need."""
    row |= {"context": context, "continuations": [f" {letter}" for letter in LETTERS[:options]], "target": target}
    return row


def _test(rows: list[dict]) -> dict:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}


def _mmlu_gold(doc: dict) -> str:
    return "ABCD"[doc["answer"]]


def _redux_gold(doc: dict) -> str:
    label = str(doc["answer"] if doc["error_type"] == "ok" else doc["correct_answer"]).strip("()")
    if label in ("A", "B", "C", "D"):
        return label
    return "ABCD"[int(label) if label in "0123" else doc["choices"].index(label)]


def _arc_gold(doc: dict) -> str:
    return "ABCDE"[doc["choices"]["label"].index(doc["answerKey"])]


CASES = {
    "cascade_mmlu": Case(gold=_mmlu_gold, chance=0.25),
    "cascade_mmlu_redux": Case(gold=_redux_gold, chance=0.25),
    "cascade_arc_challenge": Case(gold=_arc_gold, chance=0.25),
    "cascade_race_high": Case(gold=lambda doc: doc["options"]["ABCD".index(doc["answer"])], chance=0.25),
    **{f"cascade_mmmlu_{name}": Case(gold=lambda doc: doc["Answer"], chance=0.25) for name in LANGUAGES},
}
