"""`from pave import Pave`: a model with its config, from and to folders and the hub; patches are added and removed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError

from pave import config as configs
from pave.checkpoints import hot_swap, load, patch_folder
from pave.config import Config
from pave.evaluation.model_card import CARD_FILE, card
from pave.inference import demo
from pave.models.patched_model import PatchedModel
from pave.types import UserError
from pave.utils.atomic import atomic_folder
from pave.utils.hub_download import find_folder as hub_folder


class Pave:
    """A trained model together with its config."""

    def __init__(self, model: PatchedModel, config: Config) -> None:
        self.model = model
        """The torch module: base, patches, LoRA; see `set_patches`, `fuse`, `generate`."""
        self.config = config
        """What the model was made from; `add`, `remove` and `hotswap` keep it up to date."""

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        overrides: Sequence[str] = (),
        device: str | None = None,
        trust_plugins: bool = False,
    ) -> Pave:
        """Load a trained model from a folder, ours or an official one, or from the hub; `overrides` are `key=value`.

        The bases, sides and tasks that it names must be pave's own, or in `overrides`, unless `trust_plugins` lets any
        module run that it names.
        Raises UserError where there is no such folder, no way to the hub, or a tensor is missing or misshapen.
        """
        return cls(*load.load_model(_folder(source), None, overrides, device=device, trust_plugins=trust_plugins))

    def ask(
        self,
        video: str | Path,
        question: str,
        features: Mapping[str, str | Path] | None = None,
        max_new_tokens: int = 128,
    ) -> str:
        """Answer one question about one video, with the patches that are on.

        `features` names feature files or media by side-channel; without one a side-channel is read from the video
        itself. Raises UserError for an unreadable video and for a side-channel that is missing.
        """
        files = {side: Path(file) for side, file in (features or {}).items()}
        return demo.answer(self.model, self.config, Path(video), question, files, max_new_tokens=max_new_tokens)

    def save_pretrained(self, folder: str | Path, license: str = "", results: Sequence[str | Path] = ()) -> None:
        """Write a folder of ours with a model card, whole or not at all; `results` are folders of `pave eval`.

        Raises UserError for a folder without scores, or with those of other weights.
        """
        self._save(Path(folder), Path(folder).name, license, results)

    def push_to_hub(
        self, repository: str, private: bool = False, license: str = "", results: Sequence[str | Path] = ()
    ) -> str:
        """Upload what `save_pretrained` writes to a repository, made if there is none. Returns its address.

        Raises UserError without a way to the hub, a valid name or the right to write, and as `save_pretrained`.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self._save(folder, repository, license, results)
            try:
                api = HfApi()
                api.create_repo(repository, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=repository, folder_path=folder))
            except (OSError, HTTPError, HFValidationError) as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise UserError(f"{repository}: the hub refuses: {reason}; check name, login and network") from error

    def _save(self, folder: Path, name: str, license: str, results: Sequence[str | Path]) -> None:
        config = patch_folder.effective_config(self.model, self.config)
        with atomic_folder(folder) as temporary:
            patch_folder.write(self.model, config, temporary)
            text = card(self.model, config, name, license, [Path(result) for result in results])
            (temporary / CARD_FILE).write_text(text)

    def add(self, name: str, source: str | Path, overrides: Sequence[str] = (), trust_plugins: bool = False) -> None:
        """Put the patch and the LoRA of a folder of ours on this model as patch `name`; see `hot_swap.add`."""
        self.config = hot_swap.add(self.model, self.config, name, _folder(source), overrides, trust_plugins)

    def remove(self, name: str) -> None:
        """Take a patch off this model, and its LoRA with the last patch that it came with; see `hot_swap.remove`."""
        self.config = hot_swap.remove(self.model, self.config, name)

    def hotswap(self, source: str | Path, overrides: Sequence[str] = (), trust_plugins: bool = False) -> None:
        """Replace all patches and LoRAs by those of a folder of ours on the same base; see `hot_swap.hotswap`."""
        self.config = hot_swap.hotswap(self.model, self.config, _folder(source), overrides, trust_plugins)


def _folder(source: str | Path) -> Path:
    patterns = ["*.json", "*.safetensors", "*.yaml", "*.bin"]
    return hub_folder(configs.resolve(str(source)), "a folder that `pave train` wrote", patterns)
