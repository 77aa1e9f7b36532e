"""``python -m pbt.publish RUN --repo user/name``: the survivors of a complete run on the Hugging Face hub.

Pushed in one commit: a model card, the config, ``summary.json``, the summary and evidence frames, and the survivors.
Members, states, logs, prices and local paths stay at home.
"""

import argparse
import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbt.hub import SCHEME, hub_api, hub_errors, parse, quiet_hub
from pbt.publication import Publication, build
from pbt.safe_files import IGNORED, LAYOUT
from rayconf.errors import OneLineParser, UserError
from rayconf.origins import check_origins
from rayconf.storage import place

if TYPE_CHECKING:
    from huggingface_hub import HfApi

OK, MISTAKE, INTERRUPTED = 0, 2, 130


def build_parser() -> argparse.ArgumentParser:
    """All flags."""
    parser = OneLineParser(prog="python -m pbt.publish", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "run", type=place, metavar="RUN", help="directory of a complete run, e.g. runs/NAME, or s3://..."
    )
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="repository; made where there is none")
    parser.add_argument("--private", action="store_true", help="make it a private one")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made where there is none (default: the main one)")
    parser.add_argument("--message", metavar="TEXT", help="commit message")
    parser.add_argument("--license", metavar="ID", help="license of what is published, e.g. mit (default: not said)")
    parser.add_argument("--pair", nargs="+", action="extend", metavar="A/B", help="these pairs (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="print card and files; no connection, nothing pushed")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0, or 2 and one line on a user's mistake and where the hub cannot be used."""
    try:
        check_origins()
        return _publish(build_parser().parse_args(arguments))
    except UserError as error:
        print(f"pairpbt: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("pairpbt: interrupted; the repository is as it was", file=sys.stderr)
        return INTERRUPTED


def _publish(args: argparse.Namespace) -> int:
    repo, where = _repository(args.repo), f"{SCHEME}{args.repo}"
    if args.license and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}", args.license):
        raise UserError(f"--license: {args.license!r} is no identifier of a license; write e.g. mit or cc-by-4.0")
    _check_branch(args.revision)
    plan = Publication.of(args.run, args.pair)
    api = hub_api()
    if not args.dry_run:
        with quiet_hub(), hub_errors(where):
            user = api.whoami()["name"]
    with tempfile.TemporaryDirectory(prefix="pairpbt-") as scratch:
        folder = Path(scratch)
        target = f"{repo}@{args.revision}" if args.revision else repo
        build(plan, folder, target, args.license)
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        size = sum((folder / name).stat().st_size for name in files)
        if args.dry_run:
            print((folder / "README.md").read_text())
            for name in files:
                print(f"file       {name}  {(folder / name).stat().st_size} bytes")
            print(f"would push {len(files)} files, {size} bytes, to {where}; nothing was pushed")
            return OK
        with quiet_hub(), hub_errors(where):
            url = _push(api, repo, folder, files, args)
    print(f"pushed     {len(files)} files, {size} bytes: {', '.join(plan.pairs)}, as {user}")
    print(f"published  {url}")
    return OK


def _push(api: "HfApi", repo: str, folder: Path, files: Sequence[str], args: argparse.Namespace) -> str:
    """Push the folder as one commit on top of the repository's last one; returns the repository's page.

    One commit is all or nothing: until it is made, the repository is as it was. ``upload_folder`` would not do: with
    large files it makes several.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    url = api.create_repo(repo, private=True if args.private else None, exist_ok=True)
    info = api.model_info(repo)
    if args.private and not info.private:
        raise UserError(f"--private: {repo} exists and is public; make it private on its page, or give another name")
    _check_own(repo, info)
    if args.revision:
        api.create_branch(repo, branch=args.revision, exist_ok=True)
        info = api.model_info(repo, revision=args.revision)
        _check_own(repo, info)
    there = {file.rfilename for file in info.siblings or []}
    gone = sorted(name for name in there - set(files) if LAYOUT.fullmatch(name))
    operations: list[Any] = [CommitOperationAdd(name, folder / name) for name in files]
    operations += [CommitOperationDelete(name) for name in gone]
    message = (
        args.message
        or f"Survivors of {', '.join(sorted({Path(name).parts[1] for name in files if 'policy.json' in name}))}"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Parquet belongs into data sets
        try:
            api.create_commit(repo, operations, commit_message=message, revision=args.revision, parent_commit=info.sha)
        except (ValueError, RuntimeError) as error:
            if isinstance(error, OSError):
                raise  # an answer of the hub, told by hub_errors
            raise UserError(f"{SCHEME}{repo}: the upload failed: {' '.join(str(error).split())[:160]}") from error
    return str(url)


def _check_own(repo: str, info: Any) -> None:
    """Published runs get a repository of their own: the card replaces README.md, and others' files would be refused."""
    for file in info.siblings or []:
        if file.rfilename not in IGNORED and not LAYOUT.fullmatch(file.rfilename):
            raise UserError(f"--repo: {repo} holds other files ({file.rfilename[:80]!r}); give another name")


def _repository(text: str) -> str:
    place = parse(f"{SCHEME}{text}")
    if place.id != text:
        raise UserError(f"--repo: {text!r} must be user/name")
    return place.id


def _check_branch(name: str | None) -> None:
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UserError(f"--revision: {name!r} must be a branch's name of letters, digits, '.', '_' and '-'")


if __name__ == "__main__":
    sys.exit(main())
