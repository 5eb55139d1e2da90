"""Code in a model folder never runs: canaries that would make a file, and every way to open one."""

from __future__ import annotations

import io
import pickle
import runpy
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import pytest
import torch
from safetensors.torch import load_file

from nxdi import AutoModelForCausalLM, NxdiError
from nxdi.cli import main
from nxdi.cli.model_options import load_tokenizer
from nxdi.cli.prompts import encode_chat
from nxdi.generation import HuggingFaceGenerationAdapter
from untrusted import values, write, write_folder

Canary = Callable[[Path], object]
OPTIONS: dict[str, Any] = {"seq_len": 32, "max_context_length": 16, "backend": "eager"}

pytestmark = pytest.mark.timeout(120)


def sung(folder: Path) -> Path:
    """What a canary makes when it is run."""
    return folder.parent / "sung"


class Call:
    """Something to call on unpickling."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def pickled(folder: Path) -> bytes:
    return pickle.dumps({"model.norm.weight": [1.0], "x": Call(sung(folder))})


def saved(folder: Path) -> bytes:
    """As torch saves it: with the tensors of the model, and the canary besides."""
    buffer = io.BytesIO()
    torch.save({**load_file(folder / "model.safetensors"), "x": Call(sung(folder))}, buffer)
    return buffer.getvalue()


def code(folder: Path, name: str, names: str = "") -> None:
    """A Python file that sings, and defines the names that it is asked for."""
    text = f"import pathlib\npathlib.Path({str(sung(folder))!r}).touch()\n"
    classes = [f"class {each}:\n    pass\n" for each in names.split()]
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text + "\n".join(classes))


def config(folder: Path, **changes: Any) -> None:
    values("config.json", **changes)(folder)


def pickle_for_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickled(folder))


def plain_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickled(folder))
    (folder / "model.safetensors").unlink()


def torch_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(saved(folder))
    (folder / "model.safetensors").unlink()


def indexed_pickle(folder: Path) -> None:
    (folder / "part.pt").write_bytes(saved(folder))
    (folder / "model.safetensors").unlink()
    weight_map = {"model.norm.weight": "part.pt"}
    write("pytorch_model.bin.index.json", {"weight_map": weight_map})(folder)


def pickle_beside_the_folder(folder: Path) -> None:
    """A path that looks inside at its start and at its end."""
    (folder.parent / "part.bin").write_bytes(pickled(folder))
    (folder / "model.safetensors").unlink()
    weight_map = {"a": f"part.safetensors/../../{folder.name}/../part.bin"}
    write("pytorch_model.bin.index.json", {"weight_map": weight_map})(folder)


def pickle_by_a_link(folder: Path) -> None:
    """A link out of the folder: it may be followed, but only to data."""
    (folder.parent / "elsewhere.bin").write_bytes(pickled(folder))
    (folder / "pytorch_model.bin").symlink_to(folder.parent / "elsewhere.bin")
    (folder / "model.safetensors").unlink()


def classes_of_a_known_type(folder: Path) -> None:
    code(folder, "modeling_evil.py", "EvilConfig EvilForCausalLM")
    auto_map = {
        "AutoConfig": "modeling_evil.EvilConfig",
        "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM",
    }
    config(folder, auto_map=auto_map, trust_remote_code=True)


def classes_of_an_unknown_type(folder: Path) -> None:
    classes_of_a_known_type(folder)
    config(folder, model_type="evil", architectures=["EvilForCausalLM"])


def architecture(name: str) -> Canary:
    def plant(folder: Path) -> None:
        code(folder, "evil.py", "Model")
        config(folder, architectures=[name])

    return plant


def tokenizer_class(folder: Path) -> None:
    code(folder, "tokenization_evil.py", "EvilTokenizer EvilTokenizerFast")
    names = ["tokenization_evil.EvilTokenizer", "tokenization_evil.EvilTokenizerFast"]
    values(
        "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": names},
        trust_remote_code=True,
    )(folder)


def own_generate(folder: Path) -> None:
    code(folder, "custom_generate/generate.py", "generate")
    (folder / "custom_generate" / "requirements.txt").write_text("torch\n")
    defaults = {"custom_generate": str(folder), "trust_remote_code": True}
    write("generation_config.json", defaults)(folder)


def own_generate_unasked(folder: Path) -> None:
    code(folder, "custom_generate/generate.py", "generate")


def escaping(folder: Path) -> str:
    return "{{ cycler.__init__.__globals__.os.system('touch " + str(sung(folder)) + "') }}"


def template(folder: Path) -> None:
    values("tokenizer_config.json", chat_template=escaping(folder))(folder)


def template_by_attributes(folder: Path) -> None:
    text = (
        "{% for c in ''.__class__.__mro__[1].__subclasses__() %}"
        "{% if c.__name__ == 'Popen' %}{{ c(['touch', '" + str(sung(folder)) + "']) }}{% endif %}"
        "{% endfor %}"
    )
    values("tokenizer_config.json", chat_template=text)(folder)


def template_in_a_file(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(escaping(folder))


def adapter(folder: Path) -> None:
    code(folder, "adapter.py", "Adapter")
    described = {
        "base_model_name_or_path": "nobody/evil",
        "peft_type": "LORA",
        "auto_mapping": {"base_model_class": "Adapter", "parent_library": "adapter"},
    }
    write("adapter_config.json", described)(folder)


def processors(folder: Path) -> None:
    code(folder, "processing_evil.py", "EvilProcessor")
    auto_map = {"AutoProcessor": "processing_evil.EvilProcessor"}
    for name in ("processor_config.json", "preprocessor_config.json"):
        write(name, {"processor_class": "EvilProcessor", "auto_map": auto_map})(folder)
    values("tokenizer_config.json", processor_class="EvilProcessor", auto_map=auto_map)(folder)


def modules_of_known_names(folder: Path) -> None:
    """Found where the folder is the current one, if that were searched."""
    for name in ("__init__", "sitecustomize", "sentencepiece", "tiktoken", "peft", "kernels"):
        code(folder, f"{name}.py")


def class_in_our_own_config(folder: Path) -> None:
    named = {"__module__": "os", "__name__": "system"}
    write("neuron_config.json", {"neuron_config": {"attn_cls": named}, "x": named})(folder)
    code(folder, "evil.py", "Model")


def artefact(folder: Path) -> None:
    """The command line always gives options, and what is compiled takes none."""
    code(folder, "evil.py", "Model")
    write("manifest.json", {"schema_version": 1, "files": {}, "backend": "cpu"})(folder)


CANARIES: dict[str, Canary] = {
    "pickle": plain_pickle,
    "pickle of torch": torch_pickle,
    "pickle in an index": indexed_pickle,
    "pickle named safetensors": pickle_for_safetensors,
    "pickle beside the folder": pickle_beside_the_folder,
    "pickle by a link": pickle_by_a_link,
    "classes of a known type": classes_of_a_known_type,
    "classes of an unknown type": classes_of_an_unknown_type,
    "architecture os:system": architecture("os:system"),
    "architecture in a module": architecture("evil.Model"),
    "architecture as ours": architecture("evil:Model"),
    "tokenizer class": tokenizer_class,
    "own generate": own_generate,
    "own generate, unasked": own_generate_unasked,
    "chat template": template,
    "chat template by attributes": template_by_attributes,
    "chat template in a file": template_in_a_file,
    "adapter": adapter,
    "processors": processors,
    "modules of known names": modules_of_known_names,
    "class in our own config": class_in_our_own_config,
    "artefact": artefact,
}


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every attempt to reach another machine."""
    seen: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        seen.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return seen


def open_every_way(folder: Path) -> list[Callable[[], object]]:
    """What a user does with a folder; each may be refused."""

    def generate() -> object:
        model = AutoModelForCausalLM.from_pretrained(folder, **OPTIONS)
        ids = torch.tensor([[1, 2, 3]])
        return HuggingFaceGenerationAdapter(model).generate(ids, max_new_tokens=2)

    def chat() -> object:
        messages = [{"role": "user", "content": "hello"}]
        return encode_chat(folder, load_tokenizer(folder), messages)

    out, run = folder.parent / "out", ["--seq-len", "32", "--backend", "eager"]
    commands = (
        ["compile", str(folder), *run, "--out", str(out)],
        ["generate", str(folder), *run, "--prompt", "hello", "--max-new-tokens", "2"],
        ["chat", str(folder), *run, "--prompt", "hello", "--max-new-tokens", "2"],
        ["info", str(folder), *run],
    )
    return [
        lambda: AutoModelForCausalLM.class_for(folder),
        generate,
        chat,
        *(lambda command=command: main(command) for command in commands),
    ]


@pytest.mark.filterwarnings("ignore")  # of oddities in the files
@pytest.mark.parametrize("name", CANARIES)
def test_no_canary_sings(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, dialled: list[Any]
) -> None:
    folder = write_folder(tmp_path / "--nxdi.models.evil")  # a name that looks like another thing
    CANARIES[name](folder)
    monkeypatch.chdir(folder)
    for way in open_every_way(folder):
        try:
            way()
        except NxdiError:
            continue
        finally:
            assert not sung(folder).exists()
    assert not dialled


@pytest.mark.filterwarnings("ignore")
def test_the_canaries_can_sing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")

    def sings(run: Callable[[], object]) -> bool:
        run()
        was_there = sung(folder).exists()
        sung(folder).unlink(missing_ok=True)
        return was_there

    assert sings(lambda: pickle.loads(pickled(folder)))
    content = saved(folder)
    assert sings(lambda: torch.load(io.BytesIO(content), weights_only=False))
    code(folder, "evil.py", "Model")
    assert sings(lambda: runpy.run_path(str(folder / "evil.py")))
    assert sings(lambda: jinja2.Environment().from_string(escaping(folder)).render())


def test_a_sound_folder_opens_every_way(tmp_path: Path) -> None:
    """Without canaries nothing is refused: the ways above do reach the files."""
    folder = write_folder(tmp_path / "model")
    results = [way() for way in open_every_way(folder)]
    assert results[-4:] == [0, 0, 0, 0]  # the commands
