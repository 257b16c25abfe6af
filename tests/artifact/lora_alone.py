"""Run as a script: open LoRA folders with stock PEFT where dsee cannot be imported, and print the logits."""

import json
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dsee":
            raise ImportError("dsee is not to be had here")


sys.meta_path.insert(0, Blocker())

if __name__ == "__main__":
    import torch
    import transformers
    from peft import PeftModel
    from safetensors.torch import load_file

    inputs, *rest = sys.argv[1:]
    found = []
    for kind, base, adapter in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        model = getattr(transformers, kind).from_pretrained(base)
        model = PeftModel.from_pretrained(model, adapter).eval()
        assert model.peft_config["default"].peft_type.value == "LORA"
        with torch.no_grad():
            found.append(model(**load_file(inputs)).logits.tolist())
    assert not any(name.split(".")[0] == "dsee" for name in sys.modules)
    print(json.dumps(found))
