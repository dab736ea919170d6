"""What a repository holds beside what it should hold: the Hub's checksums against the folder's."""

import hashlib

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from hf_cascade.publish.folder import Upload

KEPT = {".gitattributes"}  # the Hub's own; it says which files are stored outside git


def files_at(api: HfApi, repo_id: str, revision: str) -> dict[str, RepoFile]:
    """Every file of a revision, with its checksum: sha256 for large ones, git's sha1 for the others."""
    entries = api.list_repo_tree(repo_id, revision=revision, recursive=True)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def differences(uploads: list[Upload], files: dict[str, RepoFile]) -> list[str]:
    """
    How a state on the Hub differs from the complete new one; empty for none.

    `HfApi.verify_repo_checksums` compares the same checksums, but with a folder on disk; a card has no file there.
    """
    wanted = {upload.path_in_repo: upload for upload in uploads}
    found = [f"{path} is missing" for path in wanted if path not in files]
    found += [f"{path} should not be there" for path in files if path not in wanted and path not in KEPT]
    for path in wanted.keys() & files.keys():
        entry, upload = files[path], wanted[path]
        kind, there = ("sha256", entry.lfs.sha256) if entry.lfs else ("git sha1", entry.blob_id)
        here = upload.sha256 if entry.lfs else git_sha1(upload)
        if here != there:
            found.append(f"{path} has {kind} {there[:12]} on the Hub, {here[:12]} here")
    return sorted(found)


def same(files: dict[str, RepoFile], others: dict[str, RepoFile]) -> bool:
    """Whether two states on the Hub hold the same."""
    return {path: file.blob_id for path, file in files.items()} == {path: file.blob_id for path, file in others.items()}


def to_delete(uploads: list[Upload], files: dict[str, RepoFile]) -> list[str]:
    """Files of an older state that the new one does not have."""
    wanted = {upload.path_in_repo for upload in uploads}
    return sorted(path for path in files if path not in wanted and path not in KEPT)


def git_sha1(upload: Upload) -> str:
    """What git calls this file. Errors: `ValueError` if it is not the file that was listed any more."""
    content = upload.path.read_bytes() if upload.content is None else upload.content
    if hashlib.sha256(content).hexdigest() != upload.sha256:
        raise ValueError(f"{upload.path_in_repo} was changed while it was released; run the same command again")
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def digest(uploads: list[Upload]) -> str:
    """sha256 of all paths and checksums: two releases with the same content have the same."""
    lines = sorted(f"{upload.path_in_repo} {upload.sha256}\n" for upload in uploads)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def size_of(uploads: list[Upload]) -> str:
    """`13.6 GB`, `4.7 MB`."""
    return in_words(sum(upload.size for upload in uploads))


def in_words(count: float) -> str:
    """Bytes, in units of 1000 as the Hub shows them."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
