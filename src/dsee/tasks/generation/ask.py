"""How a trained model wants to be asked: what stood around its prompts, and how its texts were written."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dsee.errors import ArtifactError
from dsee.runtime.asked import FACT as FACT  # kept under this name too: artifacts and exports share the key
from dsee.tasks.generation.encode import speaks_chat
from dsee.tasks.generation.pack import end_token
from dsee.tasks.generation.spec import DecodingSpec, GenerationSpec

#: Stands for the prompt while a chat template is taken apart.
_MARK = "[[prompt]]"


class Asking(BaseModel):
    """Kept in the manifest of a model that learned to write.

    Attributes:
        before: what stands before a prompt, special tokens written out.
        after: what stands after it.
        decoding: how texts are written.
    """

    model_config = ConfigDict(extra="ignore")

    before: str = ""
    after: str = ""
    decoding: DecodingSpec = DecodingSpec()

    def prompts(self, tokenizer: Any, texts: list[str]) -> list[list[int]]:
        """Return the token ids that a text is to be written after.

        Args:
            tokenizer: the model's tokenizer.
            texts: prompts as a user has them.
        """
        whole = [self.before + text + self.after for text in texts]
        found: list[list[int]] = tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"]
        return found


def asking(tokenizer: Any, spec: GenerationSpec, kind: str) -> Asking:
    """Return how a model that learned a task is to be asked.

    Args:
        tokenizer: its tokenizer.
        spec: the recipe's section.
        kind: one of :data:`dsee.tasks.generation.KINDS`.
    """
    decoding = spec.decoding.model_copy(update={"limit": None})
    if kind == "language-modelling":
        return Asking(decoding=decoding)
    if speaks_chat(tokenizer, spec, kind):
        asked = [{"role": "user", "content": _MARK}]
        text = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
        before, _, after = text.partition(_MARK)
        return Asking(before=before, after=after, decoding=decoding)
    end = end_token(tokenizer)
    before = "" if tokenizer.bos_token_id in (None, end) else str(tokenizer.bos_token)
    after = str(tokenizer.eos_token) if spec.separator is None else spec.separator
    return Asking(before=before, after=after, decoding=decoding)


def stored_asking(facts: dict[str, Any], folder: Any) -> Asking | None:
    """Return what an artifact says of how to ask its model; None if it says nothing.

    Args:
        facts: of its manifest.
        folder: for the message.

    Raises:
        ArtifactError: it says something else.
    """
    if FACT not in facts:
        return None
    try:
        return Asking.model_validate(facts[FACT])
    except ValidationError as error:
        raise ArtifactError(
            f"{folder}: its manifest does not say how to ask the model (facts.{FACT}: {error.errors()[0]['msg']})."
        ) from error
