"""Tasks of models that write: data to text, instructions, plain language modelling."""

from dsee.tasks.generation.encode import EncodedText, collate_text
from dsee.tasks.generation.parts import GenerationData, TextStream, load_generation_data
from dsee.tasks.generation.rows import Example
from dsee.tasks.generation.score import METRICS, score_texts
from dsee.tasks.generation.spec import KINDS, DecodingSpec, GenerationSpec
from dsee.tasks.generation.stream import StreamedText
from dsee.tasks.generation.write import write_texts

__all__ = [
    "KINDS",
    "METRICS",
    "DecodingSpec",
    "EncodedText",
    "Example",
    "GenerationData",
    "GenerationSpec",
    "StreamedText",
    "TextStream",
    "collate_text",
    "load_generation_data",
    "score_texts",
    "write_texts",
]
