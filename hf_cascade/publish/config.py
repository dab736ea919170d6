"""What `hf-cascade publish` publishes, where to, and on what terms."""

from dataclasses import dataclass, field

KINDS = ("base", "instruct", "reasoning")
GATES = ("auto", "manual")


@dataclass(kw_only=True)
class PublishArguments:
    """
    All parameters of `hf-cascade publish`. In a family file the same names stand for each model, or for all.

    Args:
        model (`str`, *optional*): a finished and evaluated folder.
        repo_id (`str`, *optional*): its repository, `ORG/NAME`.
        family (`str`, *optional*): a file that names several models, which go into one collection; instead of `model`
            and `repo_id`.
        run_dir (`str`, *optional*): folder of the stages that a family file names; unset, `runs/` and the name of the
            folder that the file is in, where `hf-cascade run` puts them.
        namespace (`str`, *optional*): account or organization of repositories that are named without one.
        parent (`str`, *optional*): folder of the model to compare with on the card and in the gate; unset, what the
            folder's manifest names.
        base_model (`str`, *optional*): Hub id of the model it was made from; unset, what its first stage read. In a
            family file, what stands at another's `model` is that one's repository; unset, the nearest ancestor among
            them.
        targets (`str`, *optional*): a YAML file of the gate's limits; unset, the defaults.
        license (`str`, *optional*): identifier, as `apache-2.0`; unset, the parent's, if its card is here.
        license_name (`str`, *optional*): of a licence that is `other`.
        license_link (`str`, *optional*): where that one's text is.
        language (`list[str]`, *optional*): ISO 639 codes; unset, those of the parent's card.
        kind (`str`, *optional*): base, instruct or reasoning, which is the card's template; unset, by its stages.
        private (`bool`, *optional*): `false` makes the repository public, when everything is in place; `true` hides
            it, if it is public. Unset, a new repository is private, and an old one stays as it is.
        gated (`str`, *optional*): who downloads must ask, and is let in by `auto` or `manual` approval.
        collection (`str`, *optional*): title of a collection to put it in, made if there is none.
        tag (`str`, *optional*): git tag of the published state, as `v1.0`.
        override (`str`, *optional*): a reason to publish although lines of the gate fail. It is printed, and written on
            the card.
        dry_run (`bool`, *optional*, defaults to `False`): show the gate's decision, the files and the card, and send
            nothing: no connection is made.
    """

    model: str | None = field(default=None, metadata={"help": "Folder of a finished and evaluated model."})
    repo_id: str | None = field(default=None, metadata={"help": "Its repository: ORG/NAME."})
    family: str | None = field(
        default=None, metadata={"help": "YAML file that names several models, instead of model and repo_id."}
    )
    run_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the family's stages. Unset: runs/ and the name of the file's folder."},
    )
    namespace: str | None = field(
        default=None, metadata={"help": "Account or organization of repositories named without one."}
    )
    parent: str | None = field(
        default=None, metadata={"help": "Folder of the model to compare with. Unset: by cascade.json."}
    )
    base_model: str | None = field(
        default=None, metadata={"help": "Hub id of the model it was made from. Unset: what its first stage read."}
    )
    targets: str | None = field(default=None, metadata={"help": "YAML file of the gate's limits. Unset: the defaults."})
    license: str | None = field(
        default=None, metadata={"help": "Licence as the Hub names it, as apache-2.0. Unset: the parent's."}
    )
    license_name: str | None = field(default=None, metadata={"help": "Name of a licence, with license other."})
    license_link: str | None = field(default=None, metadata={"help": "Address of its text, with license other."})
    language: list[str] = field(default_factory=list, metadata={"help": "ISO 639 codes. Unset: the parent's."})
    kind: str | None = field(
        default=None,
        metadata={
            "help": "Which card. Unset: by its stages.",
            "choices": ["base", "instruct", "reasoning"],
        },
    )
    private: bool | None = field(
        default=None, metadata={"help": "false: public, at the end. Unset: a new one is private, an old one stays."}
    )
    gated: str | None = field(
        default=None,
        metadata={
            "help": "Who downloads must ask, and is let in at once or by you. Unset: as it is.",
            "choices": ["auto", "manual"],
        },
    )
    collection: str | None = field(
        default=None, metadata={"help": "Title of a collection to put it in, made if there is none."}
    )
    tag: str | None = field(default=None, metadata={"help": "Git tag of the published state. Unset: v1, v2, ..."})
    override: str | None = field(
        default=None, metadata={"help": "Reason to publish although lines of the gate fail; written on the card."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Show the decision, the files and the card; send nothing."})

    def __post_init__(self):
        if self.family is None and (self.model is None or self.repo_id is None):
            lacks = [name for name in ("model", "repo_id") if getattr(self, name) is None]
            raise ValueError(f"give --model DIR and --repo_id ORG/NAME, or --family FILE: {', '.join(lacks)} not given")
        if self.family is not None and (self.model is not None or self.repo_id is not None):
            raise ValueError(
                f"family={self.family}: the file names models and repositories: leave out --model, --repo_id"
            )
        if self.family is None and self.run_dir is not None:
            raise ValueError(f"run_dir={self.run_dir}: it is where a family file's models are: give --family too")
        if self.kind is not None and self.kind not in KINDS:
            raise ValueError(f"kind={self.kind}: allowed are {', '.join(KINDS)}")
        if self.gated is not None and self.gated not in GATES:
            raise ValueError(f"gated={self.gated}: allowed are {', '.join(GATES)}")
        if self.override is not None and not self.override.strip():
            raise ValueError("override: give the reason; it is written on the card")
