"""Draws the synthetic rows of MMMU/MMMU and AI4Math/MathVista, here: `python evals/rows/draw_pictures.py`."""

import io
from pathlib import Path

from datasets import Dataset, Features, List, Value
from datasets import Image as Stored
from PIL import Image, ImageDraw

ROWS = Path(__file__).parent
SIZE = (160, 120)
COLOURS = ("red", "green", "blue", "orange", "purple")
IMAGES = [f"image_{number}" for number in range(1, 8)]
TEXTS = (
    "id",
    "question",
    "options",
    "explanation",
    "img_type",
    "answer",
    "topic_difficulty",
    "question_type",
    "subfield",
)
MMMU = Features({name: Value("string") for name in TEXTS} | {name: Stored() for name in IMAGES})
WHERE = {name: Value("string") for name in ("category", "context", "grade", "language", "source", "split", "task")}
WHERE |= {"img_height": Value("int64"), "img_width": Value("int64"), "skills": List(Value("string"))}
NAMES = ("pid", "question", "image", "unit", "answer", "question_type", "answer_type", "query")
VISTA = Features(
    {name: Value("string") for name in NAMES}
    | {"decoded_image": Stored(), "choices": List(Value("string")), "precision": Value("float64"), "metadata": WHERE}
)


def bars(*heights: int) -> dict:
    """A bar chart, its values above the bars."""
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    for place, height in enumerate(heights):
        left = 10 + 30 * place
        draw.rectangle((left, 110 - height, left + 20, 110), fill=COLOURS[place])
        draw.text((left, 96 - height), str(height), fill="black")
    return png(image)


def shape(sides: int, radius: int = 45) -> dict:
    """A regular polygon."""
    image = Image.new("RGB", SIZE, "white")
    ImageDraw.Draw(image).regular_polygon((80, 60, radius), sides, outline="black", width=3)
    return png(image)


def table(*lines: str) -> dict:
    """Lines of text in a frame."""
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    for place, line in enumerate(lines):
        draw.text((10, 8 + 18 * place), line, fill="black")
        draw.line((5, 24 + 18 * place, 155, 24 + 18 * place), fill="gray")
    return png(image)


def png(image: Image.Image) -> dict:
    """An image as the Hub stores it."""
    file = io.BytesIO()
    image.quantize(32).save(file, "PNG", optimize=True)
    return {"bytes": file.getvalue(), "path": None}


def college(
    number: str, question: str, options: list | None, answer: str, *images: dict, explanation: str = ""
) -> dict:
    """A row of MMMU; open without options."""
    row = dict.fromkeys(IMAGES) | dict(zip(IMAGES, images, strict=False))
    kind = "open" if options is None else "multiple-choice"
    row |= {"id": number, "question": question, "options": str(options or []), "answer": answer, "question_type": kind}
    return row | {
        "explanation": explanation,
        "img_type": "['Diagrams']",
        "topic_difficulty": "Easy",
        "subfield": "Test",
    }


def vista(
    pid: int, question: str, image: dict, answer: str, kind: str, choices=None, precision=None, unit=None
) -> dict:
    """A row of MathVista."""
    from hf_cascade.evaluate.benchmarks.mathvista import query_of

    where = dict.fromkeys(("category", "context", "grade", "source", "task"), "synthetic")
    where |= {"language": "english", "split": "testmini", "img_width": 160, "img_height": 120, "skills": ["synthetic"]}
    row = {"pid": str(pid), "question": question, "image": f"images/{pid}.png", "decoded_image": image}
    row |= {"choices": choices, "unit": unit, "precision": precision, "answer": answer, "metadata": where}
    row |= {"question_type": "multi_choice" if choices else "free_form", "answer_type": kind}
    return row | {"query": query_of(row)}


def mmmu() -> dict[str, list[dict]]:
    """Config and split to rows."""
    polygons = [shape(sides) for sides in (3, 4, 5, 6)]
    nine = ["2", "3", "4", "5", "6", "7", "8", "9", "10"]
    four = ["<image 1>", "<image 2>", "<image 3>", "<image 4>"]
    choose, fill = "validation_Math_{}".format, "validation_Electronics_{}".format
    parts = table("part   ohm", "R1     10", "R2     20", "R3     30")
    return {
        "Math/dev": [
            college(
                "dev_Math_1", "Which bar of <image 1> is the lowest?", ["red", "green", "blue"], "C", bars(50, 70, 20)
            ),
            college(
                "dev_Math_2", "<image 1> How many corners has this figure?", None, "5", shape(5), explanation="Count."
            ),
        ],
        "Math/validation": [
            college(
                choose(1), "Which bar of <image 1> is the highest?", ["red", "green", "blue"], "B", bars(40, 80, 20)
            ),
            college(choose(2), "How many corners has the figure in <image 1>?", nine, "E", shape(6)),
            college(choose(3), "Which of these figures has five corners?", four, "C", *polygons),
            college(choose(4), "What is the mean of all bars in <image 1>?", None, "52.5", bars(30, 60, 80, 40)),
        ],
        "Electronics/dev": [
            college("dev_Electronics_1", "Which part of <image 1> has 30 ohm?", ["R1", "R3"], "B", parts),
            college("dev_Electronics_2", "What is R1 + R2 in ohm? <image 1>", None, "30", parts, explanation="10 + 20"),
        ],
        "Electronics/validation": [
            college(
                fill(1), "Which part of <image 1> has the lowest resistance?", None, "['R1', 'resistor R1']", parts
            ),
            college(
                fill(2),
                "Resistors are listed in <image 1>, currents in <image 2>. What is the voltage across R2?",
                ["10 V", "20 V", "40 V", "60 V", "80 V"],
                "C",
                parts,
                table("part   A", "R1     1", "R2     2"),
            ),
            college(
                fill(3),
                "By how many volt does the level fall from red to blue? <image 1>",
                None,
                "-45",
                bars(70, 40, 25),
            ),
            college(fill(4), "Is the sum of the parts in <image 1> over 50 ohm?", ["Yes", "No"], "A", parts),
        ],
    }


def mathvista() -> list[dict]:
    """Rows of the split testmini."""
    chart, prices = bars(35, 60, 20), table("tea    1.25", "bread  2.40", "milk   0.95")
    return [
        vista(1, "Which bar is the highest?", chart, "green", "text", ["red", "green", "blue"]),
        vista(2, "What is the sum of all bars?", chart, "115", "integer"),
        vista(3, "What is the mean of all bars?", chart, "38.3", "float", precision=1.0),
        vista(4, "How much are tea and bread together?", prices, "3.65", "float", precision=2.0, unit="$"),
        vista(5, "Which object comes next?", shape(7), "E", "text", ["A", "B", "C", "D", "E"]),
        vista(6, "List the bars from left to right.", chart, "[35, 60, 20]", "list"),
        vista(7, "How many corners has the figure?", shape(6), "6", "text", ["5", "6", "8"]),
        vista(8, "Does milk cost less than tea?", prices, "Yes", "text", ["Yes", "No"]),
    ]


def main() -> None:
    """Write all files."""
    for name, rows in mmmu().items():
        path = ROWS / "MMMU/MMMU" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows, features=MMMU).to_parquet(path)
    path = ROWS / "AI4Math/MathVista/testmini.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(mathvista(), features=VISTA).to_parquet(path)


if __name__ == "__main__":
    main()
