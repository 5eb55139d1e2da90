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
the second token of a proposal on (after EAGLE-3, arXiv:2503.01840).
"""

from __future__ import annotations

import json
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fetch_smollm2 import DEMO_DIR, fetch_smollm2
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from nxdi import AutoModelForCausalLM
from nxdi.generation import ContinuousBatcher, RequestOptions
from nxdi.generation.speculation import EagleHead
from nxdi.generation.speculation.proposals import Proposal, Rule, Seen, Wanted

ROWS, SEQ_LEN, NEW_TOKENS = 32, 192, 128
VERIFIED = 5  # the last token, and four drafts
EPOCHS, BATCH, LEARNING_RATE = 6, 8, 1e-3

# So little text makes a head for one kind of text only: what these ask for.
TASKS = ("Write a short story about {}.", "List five facts about {}.")
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
TOPICS = " ".join(NOUNS.split()).split(", ")
HELD_OUT = ("a lighthouse", "an umbrella", "soup", "owls", "a mill", "ants")


@dataclass(frozen=True)
class Text:
    """A prompt and what the target made of it: tokens [n], features [n, hidden_size]."""

    tokens: Tensor
    features: Tensor
    prompt_len: int


class Head(nn.Module):
    """The head in training; its parameters have the names of published ones."""

    def __init__(self, config: Any, embedding: Tensor) -> None:
        super().__init__()
        size = config.hidden_size
        self.fc = nn.Linear(2 * size, size)
        layer: Any = LlamaDecoderLayer(config, 0)
        layer.input_layernorm = nn.Identity()
        self.layers = nn.ModuleList([layer])
        self.rotary = LlamaRotaryEmbedding(config)
        self.embedding = (embedding,)  # not trained

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


def prompts(tokenizer: Any, topics: Sequence[str]) -> list[list[int]]:
    """Every task for every topic, in SmolLM2's chat format."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": task.format(topic)}],
            add_generation_prompt=True,
            return_dict=True,
        )["input_ids"]
        for topic in topics
        for task in TASKS
    ]


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


def batches(texts: Sequence[Text], seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """ids [B, S], features [B, S, H] and which tokens count [B, S], in random order."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    for start in range(0, len(order), BATCH):
        chosen = [texts[place] for place in order[start : start + BATCH]]
        pad = nn.utils.rnn.pad_sequence
        ids = pad([text.tokens for text in chosen], batch_first=True)
        features = pad([text.features for text in chosen], batch_first=True)
        places = torch.arange(ids.shape[1])
        counts = [(places >= text.prompt_len - 2) & (places < len(text.tokens)) for text in chosen]
        yield ids, features, torch.stack(counts)


def loss_of(head: Head, lm_head: Tensor, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """How far features and tokens are off, from the target's features and from the head's own.

    lm_head [tokens that occur, H]: the rest of the vocabulary is left out for speed.
    """
    ids, features, counts = batch
    seen, following, wanted = features[:, :-2], ids[:, 1:-1], features[:, 1:-1]
    is_wanted = counts[:, 1:-1]
    likely = (wanted[is_wanted] @ lm_head.T).softmax(dim=-1)
    total = torch.zeros(())
    for _ in range(2):
        own = head(following, seen)
        found = own[is_wanted]
        tokens = F.cross_entropy(found @ lm_head.T, likely)
        total = total + tokens + F.smooth_l1_loss(found, wanted[is_wanted])
        seen = torch.cat([features[:, :1], own[:, :-1]], dim=1)
    return total / 2


def train(head: Head, lm_head: Tensor, texts: Sequence[Text]) -> None:
    """AdamW with a warm-up and a cosine."""
    occurring = torch.cat([text.tokens for text in texts]).unique()
    rows, steps = lm_head[occurring], EPOCHS * -(-len(texts) // BATCH)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1
    )
    with tqdm(total=steps, desc="train", unit="step") as bar:
        for epoch in range(EPOCHS):
            for batch in batches(texts, epoch):
                loss = loss_of(head, rows, batch)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(head.parameters(), 0.5)
                optimizer.step()
                schedule.step()
                bar.set_postfix(loss=f"{float(loss):.3f}")
                bar.update()


def save(head: Head, target: Path, folder: Path) -> None:
    """Write the head as a model folder. Its embedding and lm_head stay in the target's."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((target / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}, indent=2))
    save_file(head.state_dict(), folder / "model.safetensors")


def evaluate(target: Any, head: Any, given: Sequence[list[int]]) -> None:
    """Continue held-out prompts with and without the head."""
    results = []
    for proposer in (None, EagleHead(head)):
        batcher = ContinuousBatcher(target, proposer=proposer)
        ids = [batcher.add(prompt, RequestOptions(max_new_tokens=NEW_TOKENS)) for prompt in given]
        done = batcher.run()
        results.append([done[request].tokens for request in ids])
    assert batcher.speculation is not None
    counts = batcher.speculation.counts
    print(f"tokens equal plain decoding: {results[0] == results[1]}")
    for place in sorted(counts.proposed):
        kept = counts.kept[place] / counts.proposed[place]
        print(f"draft {place + 1} kept: {kept:.0%}")
    print(f"mean acceptance length with {VERIFIED - 1} drafts: {counts.tokens_per_step:.2f}")


def main() -> None:
    start = time.perf_counter()
    torch.manual_seed(0)
    folder, out = fetch_smollm2(), DEMO_DIR / "eagle-head"
    tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    options: dict[str, Any] = {
        "seq_len": SEQ_LEN,
        "batch_size": ROWS,
        "ctx_batch_size": 1,
        "enable_bucketing": True,
        "context_encoding_buckets": [64, SEQ_LEN],
        "token_generation_buckets": [SEQ_LEN],
        "speculation_length": VERIFIED,
    }
    target = AutoModelForCausalLM.from_pretrained(folder, enable_eagle_speculation=True, **options)
    texts = write_texts(target, prompts(tokenizer, TOPICS))
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].float()
    head = Head(config, embedding)
    train(head, embedding, texts)  # SmolLM2's lm_head is its embedding
    save(head, folder, out)
    compiled = AutoModelForCausalLM.from_pretrained(
        out, is_eagle_draft=True, target_model_path=folder, **options
    )
    evaluate(target, compiled, prompts(tokenizer, HELD_OUT))
    print(f"{time.perf_counter() - start:.0f} seconds in all; the head is in {out}")


if __name__ == "__main__":
    main()
