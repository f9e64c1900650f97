"""From an exported folder to a model hub: code, card and safetensors, in one commit."""

import re
from pathlib import Path

from maskdm.runtime.errors import UserError
from maskdm.runtime.packages import require_package

CARD, INDEX = "README.md", "model_index.json"
TRAVELS = {".json", ".md", ".py", ".safetensors"}  # what maskdm export writes; nothing pickled


def push_to_hub(folder: Path, repo: str, public: bool = False) -> str:
    """Upload a folder that ``export_to_diffusers`` wrote; its card then names the repository.

    Where to and as whom is the client's affair: ``HF_ENDPOINT``, ``HF_TOKEN``, ``hf auth login``.

    Args:
        folder: with model_index.json.
        repo: NAME or OWNER/NAME; made if it is not there, else it gets one more commit.
        public: whether anybody may see a repository that is made. One that is there stays as
            visible as it was, and without this nothing goes to a public one.

    Returns:
        The address of the repository.

    Raises:
        UserError: if the folder was not exported or holds other files, there is no token, or the
            hub cannot be reached or refuses.
    """
    require_package("huggingface_hub", "maskdm push", "pipeline")
    files = exported_files(folder)
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise UserError(
            "There is no token for the hub: make one that may write in the hub's settings, then "
            "say it by 'hf auth login' or HF_TOKEN=…"
        )
    api = HfApi()
    try:
        made = api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.model_info(made.repo_id).private:
            raise UserError(
                f"{made.repo_id} is public: say --public to push there, or name another repository."
            )
        content = {name: folder / name for name in files}
        card = re.sub(
            r'from_pretrained\("[^"]*"',
            f'from_pretrained("{made.repo_id}"',
            content.pop(CARD).read_text(encoding="utf-8"),
        )
        api.create_commit(
            made.repo_id,
            [
                CommitOperationAdd(CARD, card.encode()),
                *(CommitOperationAdd(name, path) for name, path in content.items()),
            ],
            commit_message="Push by maskdm",
        )
    except UserError:
        raise
    except Exception as error:  # of several libraries: HTTP, storage, the hub's client
        raise UserError(_sentence(error, repo, api.endpoint)) from None
    return str(made)


def exported_files(folder: Path) -> list[str]:
    """Return the names of the files in an exported folder, in order.

    Raises:
        UserError: if it was not exported, or holds what no export writes.
    """
    if not (folder / INDEX).is_file() or not (folder / CARD).is_file():
        raise UserError(
            f"{folder} is no exported folder, with {INDEX} and {CARD}: make one by maskdm export "
            "MODEL FOLDER, read its card, and push that."
        )
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
    names = [path.relative_to(folder).as_posix() for path in paths]
    others = [name for name in names if Path(name).suffix not in TRAVELS]
    if others:
        raise UserError(
            f"{folder} holds what maskdm export does not write: {', '.join(others[:5])}"
            f"{' …' if others[5:] else ''}. Take it out: only code, card, config and safetensors "
            "are pushed."
        )
    return names


def _sentence(error: Exception, repo: str, endpoint: str) -> str:
    """Return why nothing was pushed, and what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f"{endpoint} does not know the token: say another by 'hf auth login' or HF_TOKEN=…"
    if status == 403:
        return (
            f"The token may not write to {repo}: make one that may in the hub's settings, or name "
            "a repository of your own."
        )
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"{repo} was not pushed to {endpoint} ({reason[:300]}). If the hub cannot be reached, the "
        "same command tries again."
    )
