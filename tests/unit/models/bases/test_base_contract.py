"""What every base must do alike: shapes, counts, patches, chats, skeletons, refusals; on tiny random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.base_runs import (
    CASES,
    BaseCase,
    make_batch,
    make_samples,
    make_trained,
    tiny_run_config,
    with_all_labels,
)
from helpers.tiny_bases import randomise
from helpers.tiny_model import TinySetup
from safetensors.torch import load_file, save_file
from torch import Tensor

from pave.checkpoints import build, patch_folder
from pave.config import Config
from pave.data.collate import expand_video_tokens
from pave.inference import generation
from pave.models import trainable
from pave.models.base import Base, LoadSettings, get_base
from pave.models.patched_model import PatchedModel
from pave.training import train
from pave.types import IGNORE_INDEX, VIDEO_TOKEN_ID, UserError
from pave.utils import registry

HISTORY = (("what is heard?", "a dog"),)


@pytest.fixture(scope="module", params=CASES.values(), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> BaseCase:
    return request.param


@pytest.fixture(scope="module")
def config(case: BaseCase, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return case.config(case.make(tmp_path_factory.mktemp(case.name)))


@pytest.fixture(scope="module")
def base(config: Config) -> Base:
    return build.load_base(config.base)


def test_every_module_has_one_class_that_keeps_the_contract() -> None:
    assert registry.names("bases") == sorted({case.name for case in CASES.values()})
    for name in registry.names("bases"):
        assert get_base(name).plugin_name() == name
    with pytest.raises(UserError, match=r"base\.name=pave\.types: the module has no class Base"):
        get_base("pave.types")


@torch.no_grad()
def test_shapes_and_numbers_of_tokens(case: BaseCase, config: Config, base: Base) -> None:
    for sample, count in zip(make_samples(config, base, case.sizes), case.visual_tokens):
        assert sample.pixels is not None
        rows, size = len(sample.pixels), tuple(sample.pixels.shape[-2:])
        prompt_ids = None if sample.prompt_ids is None else torch.tensor([sample.prompt_ids])
        assert (prompt_ids is not None) == base.prompt_conditioned
        query, embeds = base.encode(sample.pixels[None], prompt_ids)
        assert query.shape == (1, rows, query.shape[2], base.query_dim)
        assert embeds.shape[:3] == query.shape[:3]
        assert embeds.shape[3] % base.embed_dim == 0

        assert base.arrange_tokens(embeds).shape == (1, count, embeds.shape[3])
        assert base.num_visual_tokens(rows, size) == count
        visual_ids = base.visual_token_ids(rows, size, sample.frame_seconds)
        assert visual_ids.count(VIDEO_TOKEN_ID) == sample.ids.count(VIDEO_TOKEN_ID) == count
        assert len(sample.ids) == len(sample.labels)

        ids = torch.tensor([sample.ids])
        positions = base.position_ids(ids, ids != 0, [sample.pixels], [sample.frame_seconds])
        assert (positions is not None) == base.multi_axis_positions
    assert case.frames % base.frame_multiple == 0


def test_fresh_patch_changes_no_bit_and_only_patch_and_lora_train(case: BaseCase, config: Config) -> None:
    model = build.create(config).eval()
    unpatched_model = PatchedModel(build.load_base(config.base), {})
    pad_id = model.base.tokenizer.pad_token_id
    one_size, two_sizes = (
        with_all_labels(make_batch(make_samples(config, model.base, sizes), pad_id))
        for sizes in (case.sizes[:1] * 2, case.sizes)
    )
    with torch.no_grad():
        for batch in (one_size, two_sizes):
            unpatched = unpatched_model(**{**batch, "sides": {}})["logits"]
            assert torch.equal(model(**batch)["logits"], unpatched)
        randomise(model.patches.parameters())
        patched = model(**two_sizes)["logits"]
    silent = int(two_sizes["mask"][0, 1:].sum())  # the first video has no sound
    assert torch.equal(patched[:silent], unpatched[:silent])
    assert not torch.allclose(patched[silent:], unpatched[silent:])

    model.train()(**make_batch(make_samples(config, model.base, case.sizes), pad_id))["loss"].backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {trainable.part_of(name) for name in with_gradient} == {"patch audio", "LoRA"}
    layers = model.base.hf.config.get_text_config().num_hidden_layers
    assert len([name for name in with_gradient if "lora_A" in name]) == 7 * layers
    parts = {trainable.part_of(name) for name, _ in model.named_parameters()}
    projector = () if model.base.multi_axis_positions else ("projector",)  # Qwen's merger belongs to the tower
    assert parts - {"newline"} == {"patch audio", "LoRA", "vision tower", *projector, "LLM"}


def test_videos_of_several_sizes_are_encoded_as_if_alone(case: BaseCase, config: Config) -> None:
    model = make_trained(config)
    samples = make_samples(config, model.base, case.sizes)
    pad_id = model.base.tokenizer.pad_token_id
    with torch.no_grad():
        together = model(**make_batch(samples, pad_id))["logits"]
        alone = torch.cat([model(**make_batch([sample], pad_id))["logits"] for sample in samples])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)


def test_answers_of_a_saved_folder(case: BaseCase, config: Config, tmp_path: Path) -> None:
    model = make_trained(config)
    pad_id = model.base.tokenizer.pad_token_id
    labelled = with_all_labels(make_batch(make_samples(config, model.base, case.sizes), pad_id))
    questions = make_batch(make_samples(config, model.base, case.sizes, answer=None), pad_id, left=True)
    patch_folder.save(model, config, tmp_path / "patch")
    loaded, _ = build.load(tmp_path / "patch", [])
    loaded.eval()
    with torch.no_grad():
        logits = model(**labelled)["logits"]
        assert torch.equal(loaded(**labelled)["logits"], logits)
        assert not torch.allclose(PatchedModel(model.base, {})(**{**labelled, "sides": {}})["logits"], logits)
    answers = [patched.generate(**questions, max_new_tokens=6) for patched in (model, loaded)]
    assert answers[0].shape == (2, 6)
    assert torch.equal(*answers)


def test_questions_that_share_a_prefix_get_the_same_answers(case: BaseCase, config: Config) -> None:
    model = make_trained(config)
    if model.base.prompt_conditioned:
        pytest.skip("questions share nothing")
    groups = []
    for sample in make_samples(config, model.base, case.sizes, answer=None):
        assert sample.pixels is not None
        other = model.base.chat("what barks? a dog barks?")
        visual_ids = model.base.visual_token_ids(
            len(sample.pixels), tuple(sample.pixels.shape[-2:]), sample.frame_seconds
        )
        ids, _ = expand_video_tokens(other.ids, other.labels, visual_ids, 512)
        groups.append(generation.PromptGroup(sample, [sample.ids, ids]))

    decoding, pad_id = generation.greedy_decoding(model, 5), model.base.tokenizer.pad_token_id
    for group, answers in zip(groups, generation.answers(model, groups, decoding, 3)):
        for prompt, answer in zip(group.prompts, answers):
            batch = make_batch([group.sample._replace(ids=prompt, labels=[])], pad_id, left=True)
            expected = model.generate(**batch, max_new_tokens=5)[0].tolist()
            assert answer == [
                token for i, token in enumerate(expected) if not set(expected[: i + 1]) & set(decoding.end)
            ]


def test_chat_supervises_the_answers(case: BaseCase, base: Base) -> None:
    open_chat = base.chat("and a human?", HISTORY)
    chat = base.chat("and a human?", HISTORY, "barks\nand is heard")
    assert chat.ids[: len(open_chat.ids)] == open_chat.ids
    assert chat.ids.count(VIDEO_TOKEN_ID) == 1
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(chat.ids, chat.labels, strict=True))
    assert set(base.chat("what is heard?").labels) == {IGNORE_INDEX}

    supervised = base.tokenizer.convert_ids_to_tokens([label for label in chat.labels if label != IGNORE_INDEX])
    text = "".join(supervised)
    for mark, character in (("▁", " "), ("Ġ", " "), ("Ċ", "\n"), ("<0x0A>", "\n")):
        text = text.replace(mark, character)
    space = "" if case.answer_end.endswith("\n") else " "
    assert text == f"{space}a dog{case.answer_end}{space}barks\nand is heard{case.answer_end}"

    if case.has_official_labels:
        assert base.chat("and a human?", HISTORY, "barks\nand is heard", "official").ids == chat.ids
    else:
        with pytest.raises(UserError, match="is for LLaVA-OneVision"):
            base.chat("what is heard?", (), "a dog", "official")


def test_skeleton_has_the_same_shapes(config: Config, base: Base) -> None:
    settings = LoadSettings(newline="no_token") if config.base.newline == "no_token" else LoadSettings()
    skeleton = type(base).load(config.base.path, settings, weights=False)
    loaded = type(base).load(config.base.path, settings)
    # A skeleton has no tokenizer to cut LLaVA-OneVision's vocabulary, and takes PPLLaVA's text tower to be CLIP-L.
    differing = {"llava_onevision": ("embed_tokens.weight", "lm_head.weight"), "ppllava": ("clip_text",)}
    actual, expected = (
        {
            name: x.shape
            for name, x in model.state_dict().items()
            if not any(part in name for part in differing.get(config.base.name, ()))
        }
        for model in (skeleton, loaded)
    )
    assert actual == expected
    assert all(x.is_meta for x in skeleton.parameters())
    assert not hasattr(skeleton, "tokenizer")
    assert not loaded.training


def test_settings_of_another_base_are_refused(config: Config) -> None:
    if config.base.name == "llava_onevision":
        pytest.skip("it has them all")
    for field, value in {"newline": "grid", "pool": "max", "vision_heads": 4}.items():
        with pytest.raises(UserError, match=rf"base\.{field}={value}, but {config.base.name} has no .* base\.{field}"):
            get_base(config.base.name).load(config.base.path, LoadSettings(**{field: value}))


def test_bases_of_videos_take_no_images(config: Config, base: Base) -> None:
    if config.base.name == "ppllava":
        pytest.skip("it takes images")
    with pytest.raises(UserError, match=f"base.name={config.base.name}: takes videos only"):
        base.preprocess_images([])


def test_it_trains(config: Config, tiny_setup: TinySetup, tmp_path: Path) -> None:
    run_config = tiny_run_config(config, tiny_setup)
    train.main(run_config, tmp_path)
    fresh, (trained, _) = build.create(run_config), build.load(tmp_path / "final", [])
    pairs = zip(fresh.patches.parameters(), trained.patches.parameters())
    assert any(not torch.equal(before, after) for before, after in pairs)


EXTRA = torch.zeros(1)


@pytest.mark.parametrize(
    ("kind", "removed", "added", "message"),
    [
        ("llava_onevision", "model.mm_projector.0.weight", {}, "multi_modal_projector.linear_1.weight"),
        ("llava_onevision", "", {"model.extra.weight": EXTRA}, "model.extra.weight"),
        ("llava_onevision", "", {"model.image_newline": torch.zeros(3)}, "image_newline"),
        ("video_llava port", "multi_modal_projector.linear_1.bias", {}, "linear_1.bias"),
        ("video_llava port", "", {"video_tower.temporal": EXTRA}, "temporal"),
        ("video_llava original", "model.mm_projector.0.bias", {}, "missing, such as 0.bias"),
        ("video_llava original", "model.layers.0.mlp.up_proj.weight", {}, "up_proj"),
        ("video_llava original", "", {"model.extra": EXTRA}, "model.extra"),
        ("video_llava original", "encoder.layers.0.temporal_embedding", {}, "no LanguageBind video"),
        ("internvl", "multi_modal_projector.linear_2.bias", {}, r"not an InternVL checkpoint.*linear_2\.bias"),
        ("video_panda", "_projector.0.bias", {}, "missing, such as 0.bias"),
        ("video_panda", "model.layers.0.mlp.up_proj.weight", {}, "up_proj"),
        ("video_panda", "_tower.balance", {}, "missing, such as balance"),
        ("video_panda", "", {"model.extra": EXTRA}, "model.extra"),
        ("ppllava", "multi_modal_projector.linear_1.bias", {}, "missing, such as linear_1.bias"),
        ("ppllava", "language_model.model.layers.0.mlp.up_proj.weight", {}, "up_proj"),
        ("ppllava", "", {"language_model.extra": EXTRA}, "extra"),
        ("ppllava", "", {"vision_tower.vision_model.gain": EXTRA}, "unexpected, such as gain"),
    ],
)
def test_wrong_tensors_are_named(
    tmp_path: Path, kind: str, removed: str, added: dict[str, Tensor], message: str
) -> None:
    folder = CASES[kind].make(tmp_path)
    state = load_file(folder / "model.safetensors")
    kept = {name: x for name, x in state.items() if not removed or not name.endswith(removed)}
    assert (len(kept) < len(state)) == bool(removed)
    save_file({**kept, **added}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=message) as error:
        get_base(CASES[kind].name).load(str(folder))
    assert "\n" not in str(error.value)


VICUNA, CLIP_PROJECTOR = 6_738_415_616, 1024 * 4096 + 4096 * 4096 + 2 * 4096


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        # Of the published tower's 404.2 M the last layer and the norm after it are never needed.
        ("video_llava", "LanguageBind/Video-LLaVA-7B", (404_187_136 - 16_806_912, CLIP_PROJECTOR, VICUNA)),
        ("video_llava", "LanguageBind/Video-LLaVA-7B-hf", (303_179_776, CLIP_PROJECTOR, VICUNA + 2 * 4096 * 64)),
        ("video_panda", "jh-yi/Video-Panda-7B", (24_086_866, 20_979_712, VICUNA)),
        ("qwen2_5_vl", "Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976),
        ("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656),
        ("qwen3_vl", "Qwen/Qwen3-VL-2B-Instruct", 2_127_532_032),
        ("qwen3_vl", "Qwen/Qwen3-VL-4B-Instruct", 4_437_815_808),
        ("qwen3_vl", "Qwen/Qwen3-VL-8B-Instruct", 8_767_123_696),
        ("internvl", "OpenGVLab/InternVL3-1B-hf", 938_193_024),
        ("internvl", "OpenGVLab/InternVL3-2B-hf", 2_088_957_440),
        ("internvl", "OpenGVLab/InternVL3-8B-hf", 7_944_373_760),
    ],
)
def test_published_names_need_no_files(name: str, path: str, expected: int | tuple[int, int, int]) -> None:
    base = get_base(name).load(path, LoadSettings(newline="no_token"), weights=False)
    counts = dict.fromkeys(("vision tower", "projector", "LLM"), 0)
    for tensor_name, parameter in base.named_parameters():
        assert parameter.is_meta
        counts[trainable.part_of(tensor_name)] += parameter.numel()
    assert (sum(counts.values()) if isinstance(expected, int) else tuple(counts.values())) == expected
