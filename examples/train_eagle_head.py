"""Train an EAGLE head for SmolLM2 on text that SmolLM2 writes itself, and see what it is worth.

    python examples/train_eagle_head.py

Takes up to ten minutes on two cores. The head lands in .demo/eagle-head and is used like any other:

    target = nxdi.AutoModelForCausalLM.from_pretrained(
        ".demo/SmolLM2-135M-Instruct", enable_eagle_speculation=True, speculation_length=5)
    head = nxdi.AutoModelForCausalLM.from_pretrained(
        ".demo/eagle-head", is_eagle_draft=True, speculation_length=5,
        target_model_path=".demo/SmolLM2-135M-Instruct")
    adapter.generate(..., assistant_model=head)

    nxdi bench .demo/SmolLM2-135M-Instruct --speculation .demo/eagle-head

The recipe is EAGLE's (arXiv:2401.15077): predict the target's next features and the token that
follows from them. Half of the loss is taken where the head reads its own features, as it does from
the second token of a proposal on (after EAGLE-3, arXiv:2503.01840). Some features are ten times as
large as others, and a hundred times as large as embeddings, so the weights are learnt in units of
what they read and write; without that a head needs several times the text.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fetch_smollm2 import DEMO_DIR, fetch_smollm2
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from nxdi import AutoModelForCausalLM
from nxdi.generation import ContinuousBatcher, RequestOptions
from nxdi.generation.speculation import EagleHead
from nxdi.generation.speculation.proposals import Proposal, Rule, Seen, Wanted

ROWS, SEQ_LEN, NEW_TOKENS = 32, 192, 128
NUM_EVALUATED = 48  # tokens that are written with the head
LONGEST_PROMPT = 48
DRAFTS = 4
# A step verifies the last token, the drafts, and what the step before kept beside the first chain.
VERIFIED = 6
TREE = {"step": 4, "branching_factor": 3, "num_inputs": 3, "num_verification_token": DRAFTS}
NUM_TEXTS, EPOCHS, LEARNING_RATE = 416, 3, 7e-4
FREQUENT = 2000  # tokens that the loss looks at

# So little text makes a head for one kind of text only: what this asks for.
TASK = "Write a short story about {}."
NOUNS = """
a baker, a beekeeper, a bicycle, a blue door, a book, a bridge, a butterfly, a camel, a candle,
a carpenter, a castle, a cave, a chess game, a clock, a cloud, a coin, a desert, a doctor, a
dolphin, a dragon, a drum, a farmer, a ferry, a fisherman, a flute, a forest, a fox, a frog, a
garden, a ghost, a glacier, a goat, a guitar, a harbour, a hat, a hedgehog, a horse, an island,
a journey, a kite, a lantern, a letter, a library, a lion, a lost key, a map, a market, a
mirror, a monk, a mountain, a mouse, a museum, a nurse, a painter, a parrot, a piano, a picnic,
a pilot, a pirate, a poet, a pond, a potter, a puppet, a rabbit, a race, a rainbow, a river, a
robot, a rocket, a rose, a sailor, a scarf, a school, a shadow, a sheep, a ship, a shoemaker, a
silver ring, a snail, a soldier, a spider, a squirrel, a stone, a storm, a swan, a tailor, a
teacher, a telescope, a tiger, a tower, a toy, a train, a treasure, a tree, a tunnel, a turtle,
a valley, a village, a violin, a volcano, a wall, a waterfall, a well, a whale, a wheel, a
window, a wolf, a writer, apples, autumn, bats, bears, bread, camels, carrots, cats, cheese,
chocolate, coffee, copper, corn, cotton, crows, deer, diamonds, dogs, ducks, eagles,
earthquakes, elephants, fireflies, fog, geese, glass, gold, grapes, grass, honey, ice, ink,
iron, jellyfish, kangaroos, lakes, lemons, lightning, mangoes, maple syrup, mars, mice, milk,
monkeys, moss, mushrooms, oak trees, olives, onions, oranges, otters, oysters, pandas, paper,
peacocks, pencils, penguins, pepper, pigeons, planets, plums, pumpkins, rain, rice, roads,
rockets, salmon, salt, sand, seals, sharks, shells, silk, silver, snakes, snow, spring, stars,
steam, sugar, summer, sunflowers, tea, the moon, the sea, the sun, the wind, thunder, tigers,
toads, tomatoes, trains, trees, tulips, wasps, water, wheat, winter, wood, wool, zebras
"""
HELD_OUT = """
a lighthouse, an umbrella, soup, owls, a mill, ants, a broken cup, a canal, two brothers, rust,
a hermit, a wedding, a tram, an orchard, a drought, a compass, a chimney, a violinist, swallows, a
basket, a cook, a quilt, the north, a ladder, a swamp, bees, an old dog, a barber, a flood, salt and
smoke, a juggler, a staircase
"""


@dataclass(frozen=True)
class Text:
    """A prompt and what the target made of it: tokens [n], features [n, hidden_size]."""

    tokens: Tensor
    features: Tensor
    prompt_len: int


class Scaled(nn.Module):
    """A weight [out, in] that is learnt in units of its inputs [in] and outputs [out]."""

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        super().__init__()
        self.units = outputs[:, None] / inputs

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.units


class Head(nn.Module):
    """The head in training; its parameters have the names of published ones.

    embedding [vocab_size, hidden_size] is not trained. features [n, hidden_size]: a sample.
    """

    def __init__(self, config: Any, embedding: Tensor, features: Tensor) -> None:
        super().__init__()
        size = config.hidden_size
        self.fc = nn.Linear(2 * size, size, bias=False)
        layer: Any = LlamaDecoderLayer(config, 0)
        layer.input_layernorm = nn.Identity()
        self.layers = nn.ModuleList([layer])
        self.rotary = LlamaRotaryEmbedding(config)
        self.embedding = (embedding,)
        unit, ones = features.std(dim=0), torch.ones
        layer.post_attention_layernorm.weight.data = features.square().mean().sqrt() / unit
        _scale(self.fc, torch.cat([embedding.std() * ones(size), unit]), unit, gain=0.3)
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            _scale(linear, unit, ones(linear.out_features), gain=1.0)
        for linear in (attention.o_proj, mlp.down_proj):
            _scale(linear, ones(linear.in_features), unit, gain=0.1)

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
        """What follows each token [B, S], and its features [B, S, H] -> those of what follows."""
        x = self.fc(torch.cat([F.embedding(ids, self.embedding[0]), features], dim=-1))
        num = ids.shape[1]
        positions = self.rotary(x, torch.arange(num)[None])
        mask = torch.full((num, num), torch.finfo(x.dtype).min).triu(1)[None, None]
        layer: Any = self.layers[0]
        x = x + layer.self_attn(x, position_embeddings=positions, attention_mask=mask)[0]
        out: Tensor = x + layer.mlp(layer.post_attention_layernorm(x))
        return out


def _scale(linear: nn.Linear, inputs: Tensor, outputs: Tensor, gain: float) -> None:
    """Begin with random weights; outputs are about `gain` of their units."""
    with torch.no_grad():
        nn.init.normal_(linear.weight, std=gain / math.sqrt(linear.in_features))
    parametrize.register_parametrization(linear, "weight", Scaled(inputs, outputs), unsafe=True)


def prompts(tokenizer: Any, topics: Sequence[str]) -> list[list[int]]:
    """The task for every topic, in SmolLM2's chat format."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": TASK.format(topic)}],
            add_generation_prompt=True,
            return_dict=True,
        )["input_ids"]
        for topic in topics
    ]


def topics_to_learn(num: int) -> list[str]:
    """The nouns, then pairs of them."""
    nouns = entries(NOUNS)
    pairs = [
        f"{first} and {nouns[(place + distance) % len(nouns)]}"
        for distance in range(7, len(nouns))
        for place, first in enumerate(nouns)
    ]
    return [*nouns, *pairs][:num]


def entries(text: str) -> list[str]:
    """Those of a list with commas and line breaks."""
    return " ".join(text.split()).split(", ")


class Recorder:
    """Proposes nothing, and keeps the features of all that the target computes."""

    draft = None

    def __init__(self) -> None:
        self.features: dict[Hashable, list[Tensor]] = {}

    def check(self, target: object) -> None:
        """Any target will do."""

    def watch(self, seen: Sequence[Seen]) -> None:
        for item in seen:
            assert item.output.features is not None
            features = item.of_tokens(item.output.features)
            self.features.setdefault(item.sequence.id, []).append(features.clone())

    def propose(self, rows: Sequence[Wanted], rule: Rule) -> list[Proposal]:
        return [Proposal() for _ in rows]


def write_texts(
    target: Any, given: Sequence[list[int]], new_tokens: int = NEW_TOKENS
) -> list[Text]:
    """Let the target continue the prompts greedily, and keep its features of all of it."""
    recorder = Recorder()
    batcher = ContinuousBatcher(target, proposer=recorder)
    ids = [batcher.add(prompt, RequestOptions(max_new_tokens=new_tokens)) for prompt in given]
    found: dict[int, list[int]] = {request: [] for request in ids}
    with tqdm(total=len(given), desc="write", unit="text") as bar:
        while batcher.num_requests:
            for output in batcher.step():
                found[output.request_id].append(output.token)
            bar.update(len(given) - batcher.num_requests - bar.n)
    texts = []
    for request, prompt in zip(ids, given, strict=True):
        features = torch.cat(recorder.features[request])
        tokens = torch.tensor([*prompt, *found[request]])[: len(features)]
        texts.append(Text(tokens, features, len(prompt)))
    return texts


def loss_of(head: Head, lm_head: Tensor, text: Text) -> Tensor:
    """How far features and tokens are off, from the target's features and from the head's own.

    lm_head [tokens the loss looks at, H].
    """
    features, own_from = text.features[None], max(text.prompt_len - 2, 0)
    seen, following, wanted = features[:, :-2], text.tokens[None, 1:-1], features[0, 1:-1]
    wanted = wanted[own_from:]
    likely, unit = (wanted @ lm_head.T).softmax(dim=-1), wanted.std(dim=0)
    total = torch.zeros(())
    for _ in range(2):
        own = head(following, seen)
        found = own[0, own_from:]
        tokens = F.cross_entropy(found @ lm_head.T, likely)
        total = total + tokens + 0.1 * F.smooth_l1_loss(found / unit, wanted / unit)
        seen = torch.cat([features[:, :1], own[:, :-1]], dim=1)
    return total / 2


def train(head: Head, lm_head: Tensor, texts: Sequence[Text]) -> None:
    """AdamW with a warm-up and a cosine, one text after the other."""
    tokens, counts = torch.cat([text.tokens for text in texts]).unique(return_counts=True)
    rows = lm_head[tokens[counts.argsort(descending=True)[:FREQUENT]]]
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=EPOCHS * len(texts), pct_start=0.1
    )
    order = torch.cat([torch.randperm(len(texts)) for _ in range(EPOCHS)]).tolist()
    bar = tqdm(order, desc="train", unit="text")
    for place in bar:
        loss = loss_of(head, rows, texts[place])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")


def save(head: Head, target: Path, folder: Path) -> None:
    """Write the head as a model folder. Its embedding and lm_head stay in the target's."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((target / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}, indent=2))
    for module in head.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    save_file(head.state_dict(), folder / "model.safetensors")


def evaluate(target: Any, head: Any, given: Sequence[list[int]]) -> None:
    """Continue held-out prompts with and without the head."""
    results = []
    for proposer in (None, EagleHead(head)):
        batcher = ContinuousBatcher(target, proposer=proposer)
        ids = [
            batcher.add(prompt, RequestOptions(max_new_tokens=NUM_EVALUATED)) for prompt in given
        ]
        done = batcher.run()
        results.append([done[request].tokens for request in ids])
    assert batcher.speculation is not None
    counts = batcher.speculation.counts
    print(f"tokens equal plain decoding: {results[0] == results[1]}")
    for place in sorted(counts.proposed):
        kept = counts.kept[place] / counts.proposed[place]
        print(f"draft {place + 1} kept: {kept:.0%}")
    print(f"mean acceptance length with {DRAFTS} drafts: {counts.tokens_per_step:.2f}")


def main() -> None:
    start = time.perf_counter()
    torch.manual_seed(0)
    folder, out = fetch_smollm2(), DEMO_DIR / "eagle-head"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder, attn_implementation="sdpa")
    options: dict[str, Any] = {
        "seq_len": SEQ_LEN,
        "batch_size": ROWS,
        "ctx_batch_size": 1,
        "enable_bucketing": True,
        "max_context_length": LONGEST_PROMPT,
        "context_encoding_buckets": [LONGEST_PROMPT],
        "token_generation_buckets": [SEQ_LEN],
        "speculation_length": VERIFIED,
        "token_tree_config": TREE,
    }
    target = AutoModelForCausalLM.from_pretrained(
        folder,
        enable_eagle_speculation=True,
        on_device_sampling_config={"do_sample": False},
        **options,
    )
    texts = write_texts(target, prompts(tokenizer, topics_to_learn(NUM_TEXTS)))
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].float()
    head = Head(config, embedding, torch.cat([text.features for text in texts]))
    train(head, embedding, texts)  # SmolLM2's lm_head is its embedding
    save(head, folder, out)
    compiled = AutoModelForCausalLM.from_pretrained(
        out, is_eagle_draft=True, target_model_path=folder, **options
    )
    evaluate(target, compiled, prompts(tokenizer, entries(HELD_OUT)))
    print(f"{time.perf_counter() - start:.0f} seconds in all; the head is in {out}")


if __name__ == "__main__":
    main()
