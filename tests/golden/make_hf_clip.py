"""Writes hf-clip/: tiny CLIPs with random weights as `transformers` saves them, pictures with captions, and the scores
that `transformers` gives them (pip install transformers torch pillow safetensors).  The vocabulary is that of clip-bpe/.

    python3 tests/golden/make_hf_clip.py

    hf-clip/MODEL/          config.json, model.safetensors and, where it says something, preprocessor_config.json
    hf-clip/records.json    records for tok-load(1): keys, captions, pictures of odd sizes
    hf-clip/scores          a line per record: key, then the cosine by each model, in the order of MODELS

With a folder as argument it compares instead: the folder holds records.json and a folder MODEL, which is given random
weights of the size named by its config.json (or the default, ViT-B/32), and gets a file scores.

    python3 tests/golden/make_hf_clip.py FOLDER"""
import base64
import json
import os
import shutil
import sys

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

here = os.path.dirname(os.path.abspath(__file__))
vocabulary = os.path.join(here, "clip-bpe")
with open(f"{vocabulary}/vocab.json", encoding="utf-8") as f:
    ids = json.load(f)
END = ids["<|endoftext|>"]


def config(act, end, context=24, size=16, patch=8, widths=(8, 16), layers=(2, 2), heads=(2, 4), hidden=(20, 24), embed=12):
    both = {"hidden_act": act}
    text = {"vocab_size": len(ids), "hidden_size": widths[0], "intermediate_size": hidden[0], "num_hidden_layers": layers[0],
            "num_attention_heads": heads[0], "max_position_embeddings": context, "eos_token_id": end,
            "bos_token_id": END - 1, "pad_token_id": END, **both}
    vision = {"hidden_size": widths[1], "intermediate_size": hidden[1], "num_hidden_layers": layers[1],
              "num_attention_heads": heads[1], "image_size": size, "patch_size": patch, **both}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=embed)


# name: config, type of the file, preprocessing.  "old" has the wrong end token of files before 2023 and their
# position_ids; "first" takes the state of a token that some captions have twice and some not at all.
MODELS = {
    "quick": (config("quick_gelu", END), torch.float32, None),
    "old": (config("gelu", 2, context=11, size=24, patch=6, widths=(12, 8), layers=(1, 3), heads=(3, 2), embed=7),
            torch.float16, {"size": 29, "crop_size": 24, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.25]}),
    "first": (config("quick_gelu", ids["a</w>"], hidden=(32, 64)), torch.bfloat16,
              {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}),
}


def randomize(model):
    """Wider than the library's initial weights, so that every part of the model shows in the scores."""
    for name, p in model.named_parameters():
        if p.dim() > 0:
            torch.nn.init.normal_(p, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0,
                                  std=0.3 if p.dim() == 1 or "embedding" in name else 1.5 / p[0].numel() ** 0.5)


def save(model, folder, dtype, preprocessing):
    model.to(dtype).save_pretrained(folder)
    for name in "generation_config.json",:
        if os.path.exists(f"{folder}/{name}"):
            os.remove(f"{folder}/{name}")
    if preprocessing:
        with open(f"{folder}/preprocessor_config.json", "w") as f:
            json.dump(preprocessing, f)
    if dtype == torch.float16:  # as older files have them
        tensors = load_file(f"{folder}/model.safetensors")
        for part, n in ("text", model.config.text_config.max_position_embeddings), ("vision", 17):
            tensors[f"{part}_model.embeddings.position_ids"] = torch.arange(n).unsqueeze(0)
        save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})


def scores(folder, records, files):
    """The library's own pipeline: tokenizer, picture processor and model of the folder, in f32."""
    model = CLIPModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    size = model.config.vision_config.image_size
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size)
    if os.path.exists(f"{folder}/preprocessor_config.json"):
        processor = CLIPImageProcessor.from_pretrained(folder)
    tokenizer = CLIPTokenizerFast(f"{files}/vocab.json", f"{files}/merges.txt")
    result = []
    for r in records:
        rgb = numpy.frombuffer(base64.b64decode(r["pixels"]["rgb"]), dtype=numpy.uint8)
        picture = Image.fromarray(rgb.reshape(r["pixels"]["height"], r["pixels"]["width"], 3))
        text = tokenizer(r["caption"], truncation=True, max_length=model.config.text_config.max_position_embeddings,
                         padding="max_length", return_tensors="pt")
        with torch.no_grad():
            a = model.get_image_features(processor(picture, return_tensors="pt")["pixel_values"])
            b = model.get_text_features(text["input_ids"], text["attention_mask"])
        result.append(torch.nn.functional.cosine_similarity(a.double(), b.double()).item())
    return result


def make_records():
    with open(f"{vocabulary}/texts", encoding="utf-8") as f:
        texts = [t for t in f.read().split("\n") if t.strip()]
    draw = numpy.random.default_rng(7)
    sizes = [(16, 16), (24, 24), (29, 29), (37, 23), (12, 40), (5, 9), (64, 48), (33, 17), (2, 5), (100, 30), (17, 18), (24, 16)]
    captions = texts[:4] + texts[-14:]
    for i, text in enumerate(captions):
        width, height = sizes[i % len(sizes)]
        rgb = (draw.random((height, width, 1)) * 255 * draw.random(3) + numpy.indices((height, width)).sum(0)[..., None] % 32)
        rgb = rgb.clip(0, 255).astype(numpy.uint8).tobytes()
        yield {"key": f"r{i:02}", "caption": text,
               "pixels": {"width": width, "height": height, "rgb": base64.b64encode(rgb).decode()}}


def write(path, records, columns):
    with open(path, "w") as f:
        for i, r in enumerate(records):
            f.write("\t".join([r["key"]] + ["%.8f" % c[i] for c in columns]) + "\n")


def golden():
    out = os.path.join(here, "hf-clip")
    shutil.rmtree(out, ignore_errors=True)
    records = list(make_records())
    columns = []
    for name, (conf, dtype, preprocessing) in MODELS.items():
        model = CLIPModel(conf)
        randomize(model)
        save(model, f"{out}/{name}", dtype, preprocessing)
        columns.append(scores(f"{out}/{name}", records, vocabulary))
    with open(f"{out}/records.json", "w", encoding="utf-8") as f:
        f.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    write(f"{out}/scores", records, columns)


def compare(folder):
    with open(f"{folder}/records.json", encoding="utf-8") as f:
        records = [json.loads(line) for line in f]
    model = f"{folder}/MODEL"
    if not os.path.exists(f"{model}/model.safetensors"):
        made = CLIPModel(CLIPConfig.from_pretrained(model) if os.path.exists(f"{model}/config.json") else CLIPConfig())
        randomize(made)
        made.save_pretrained(model)
    write(f"{folder}/scores", records, [scores(model, records, model)])


torch.manual_seed(1)
golden() if len(sys.argv) < 2 else compare(sys.argv[1])
