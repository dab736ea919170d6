"""`hf-cascade publish`: finished folders to the Hub, behind a gate, with complete cards.

    hf-cascade publish --model runs/tiny/14b --repo_id ORG/tiny-14b --dry_run
    hf-cascade publish --family recipes/tiny/publish.yaml --namespace ORG

Everything that can fail here is done first, for all models; only then is a connection made.
"""

import sys

from huggingface_hub import HfApi, get_token
from transformers import HfArgumentParser
from trl import TrlParser

from hf_cascade import __version__
from hf_cascade.publish import family, release
from hf_cascade.publish.config import PublishArguments
from hf_cascade.publish.family_file import Terms, read
from hf_cascade.publish.prepare import Prepared, prepare
from hf_cascade.secrets import scrub

DONE, REFUSED, STOPPED = 0, 1, 75
LOG_IN = "not logged in: run `hf auth login`, or set HF_TOKEN to a token that may write"


def make_parser() -> HfArgumentParser:
    """Flags of `hf-cascade publish`; `--config FILE` reads them from YAML."""
    return TrlParser((PublishArguments,), prog="hf-cascade publish", description=__doc__.splitlines()[0])


def main(argv: list[str]) -> int:
    """
    Publish, or with `--dry_run` show what would be published.

    Returns:
        `int`: 0 done; 1 the gate is closed, and nothing was sent; 75 the Hub failed: the same command goes on.

    Raises:
        ValueError, FileNotFoundError: bad input, nothing was sent. No message holds a token.
    """
    try:
        (arguments,) = make_parser().parse_args_and_config(argv)
        planned, terms = read(arguments)
        release.check_names([one.repo_id for one in planned], terms.tag)
        prepared = [prepare(one) for one in planned]
        for one in prepared:
            print(scrub(one.text()), end="\n\n")
        if arguments.dry_run:
            return _show(prepared, terms)
        if not all(one.ready for one in prepared):
            return _refuse(prepared)
        if get_token() is None:
            raise ValueError(LOG_IN)
        api = HfApi(library_name="hf-cascade", library_version=__version__)
        return _send(prepared, terms, api)
    except release.GateRefusal as error:
        print(f"hf-cascade: {scrub(str(error))}", file=sys.stderr)
        return REFUSED
    except release.ReleaseError as error:
        print(f"hf-cascade: stopped: {scrub(str(error))}", file=sys.stderr)
        return STOPPED
    except (ValueError, OSError) as error:
        raise ValueError(scrub(str(error))) from None


def _show(prepared: list[Prepared], terms: Terms) -> int:
    """The dry run: files and card of every model."""
    for one in prepared:
        print(f"--- files of {one.planned.repo_id}\n{one.listing()}\n")
        if one.card is not None:
            print(f"--- card of {one.planned.repo_id}\n{scrub(one.card)}")
    visible = {None: "private if new, else as it is", True: "private", False: "public"}[terms.private]
    gated = f"; downloads need {terms.gated} approval" if terms.gated else ""
    print(f"--- dry run: nothing was sent. Visibility: {visible}{gated}")
    return DONE if all(one.ready for one in prepared) else REFUSED


def _refuse(prepared: list[Prepared]) -> int:
    names = ", ".join(one.planned.repo_id for one in prepared if not one.ready)
    others = " The other models were not sent either." if len(prepared) > 1 else ""
    print(f"hf-cascade: {names} cannot be published: see the lines above. Nothing was sent.{others}", file=sys.stderr)
    return REFUSED


def _send(prepared: list[Prepared], terms: Terms, api: HfApi) -> int:
    """Release all, which asks every gate once more before its merge."""
    of_repo = {one.planned.repo_id: one for one in prepared}
    asked: set[str] = set()

    def decide(member: family.Member):
        again = member.repo_id in asked
        asked.add(member.repo_id)
        one = of_repo[member.repo_id]
        return one.decide() if again else one.decision

    published = family.publish_family(
        [family.Member(one.planned.model, one.planned.repo_id, one.kind) for one in prepared],
        api=api,
        message="Model, card and evaluation, by hf-cascade publish",
        uploads=lambda member, _: of_repo[member.repo_id].files,
        decide=decide,
        title=terms.collection,
        tag=terms.tag,
        private=terms.private,
        gated=terms.gated,
    )
    for one in published:
        print(f"{one.url}  {one.tag}  {one.commit[:12]}")
    if published[0].collection is not None:
        print(published[0].collection)
    return DONE
