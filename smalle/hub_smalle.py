"""What makes a folder or a Hub repository whole beside what transformers saves: a model card, and one upload of it all.

The code travels too, since every class names its auto class (`_auto_class`).
"""

import os
import tempfile

from huggingface_hub import HfApi, ModelCard

UPLOAD_OPTIONS = (
    "repo_id",
    "commit_message",
    "commit_description",
    "private",
    "token",
    "revision",
    "create_pr",
    "tags",
)
CARD = """\
---
library_name: transformers
pipeline_tag: text-to-speech
tags: [text-to-speech, smalle, codec-language-model, linear-attention]
---

# {name}

A text-to-speech model of the Small-E family ([arXiv 2406.04467](https://arxiv.org/abs/2406.04467)). Its code is in this
repository.

```python
from transformers import pipeline

speech = pipeline("text-to-speech", model="{name}", trust_remote_code=True)("Hello.")  # audio, sampling_rate
```

Say here what it was trained on, what was measured, and under which licence it may be used. Clone a person's voice only
with that person's consent, and say that speech is synthetic where it could be taken for a recording.
"""


def write_card(folder, name):
    """Writes README.md, if there is none."""
    path = os.path.join(folder, "README.md")
    if not os.path.exists(path):
        with open(path, "w", encoding="utf-8") as file:
            file.write(CARD.format(name=name))


def keep_card(api, repo_id, folder, tags, **options):
    """README.md of the folder becomes that of the repository, where it has one; `tags` are added."""
    path = os.path.join(folder, "README.md")
    there = api.file_exists(repo_id, "README.md", **options)
    card = ModelCard.load(api.hf_hub_download(repo_id, "README.md", **options) if there else path)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *(tags or [])]))
    card.save(path)


class HubMixin:
    """save_pretrained and push_to_hub of a model or a processor."""

    def save_pretrained(self, save_directory, *args, push_to_hub=False, **kwargs):
        """As in transformers, and a model card where there is none; push_to_hub: also that, with its options."""
        upload = {name: kwargs.pop(name) for name in UPLOAD_OPTIONS if name in kwargs}
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        name = os.path.basename(os.path.abspath(save_directory))
        if kwargs.get("is_main_process", True):
            write_card(save_directory, name)
            if push_to_hub:
                self.push_to_hub(**{"repo_id": name, **upload})
        return saved

    def push_to_hub(
        self,
        repo_id,
        *,
        commit_message=None,
        commit_description=None,
        private=None,
        token=None,
        revision=None,
        create_pr=False,
        tags=None,
        **saving,
    ):
        """Uploads what save_pretrained(**saving) writes, as one commit. A model card that is there stays.

        Args as in transformers; model and processor of a checkpoint go to the same repository.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            write_card(folder, repo_id)
            keep_card(api, repo_id, folder, tags, revision=revision)
            self.save_pretrained(folder, **saving)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
            )
