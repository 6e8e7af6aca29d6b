"""Writes the model card of the bundled SAE.

    python train/base_card.py SAE --manifest base/manifest.json --data DATA

The sources come from the manifest of `base_corpus.py`. The figures are measured here, on sets that were not trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sae_steer_retriever.encoders.embedders import SentenceTransformerEmbedder
from sae_steer_retriever.encoders.embedding_cache import CachedEmbedder
from sae_steer_retriever.evaluate.datasets import read_retrieval_set
from sae_steer_retriever.evaluate.fidelity import measure_fidelity
from sae_steer_retriever.evaluate.retrieval_set import embed_set
from sae_steer_retriever.features.catalog import FeatureCatalog
from sae_steer_retriever.sae.topk_sae import TopKSAE

SETS = ("scifact", "npl", "msmarco-5k")
EXAMPLES = 24
CARD = """# SAE for all-MiniLM-L6-v2, general text

A TopK sparse autoencoder with {n} latents, {k} of them active per embedding; the {k_labels} strongest are its label
latents. It is bundled with `sae-steer-retriever`, which uses it if no SAE is given. Fingerprint `{fingerprint}`.

## Use

It explains and steers retrieval from stores of all-MiniLM-L6-v2 embeddings. It was trained on general
English, news, science, medicine and software. For a specialised corpus, or another language, adapt it
(`sae-steer train --init pretrained`) or train one.

## Figures on sets it has not seen

Retention of nDCG@10: nDCG@10 of a search with reconstructed embeddings, or with codes alone, divided by that of the
encoder. Codes are compared by dot product, as in the papers, and power-normalised, as `space="latent"` does.

| set | reconstructed | codes, dot product | codes, power-normalised | unexplained (FVU), passages |
|---|---|---|---|---|
{figures}

Labels: {labelled} of {n} latents have one. A label's AUROC says how well its words find the passages with that label
latent, among passages that were held out when the label was written: {random:.3f} against random passages, {hard:.3f}
against the nearest passages without it. Some of the most frequent:

{examples}

## Trained on

{total} passages and {queries} query-like texts, without duplicates and without any text that shares thirteen words in a
row with the sets above. The weights contain no text, the labels contain words.

| source | passages | what | licence |
|---|---|---|---|
{sources}

Settings: `train/recipes/base-minilm.toml`. Texts were embedded in bfloat16 (cosine with float32 at least .9999). The
weights are stored in float16; the figures above were measured with them.

## Limits

- A label is a guess from words: it may be too narrow, too wide or wrong. Check its score.
- A feature is a direction that helps to reconstruct embeddings. It is no cause, and no proof that a passage is about
  its label. Every hit reports how much of its score no feature explains.
- English only. Newsgroups of the nineties, news agencies of the eighties and American prose of the sixties are a large
  part of the training texts, with the views and gaps of their time.
- Embeddings of any other model, or of another pooling, are refused.

## Not for

Do not use it for decisions about people, or to hide passages without telling the readers: steering changes what is
found, so say that it is on.
"""


def main() -> None:
    """Measure the SAE, and write README.md into its folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sae", type=Path)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with the test sets")
    arguments = parser.parse_args()
    sae = TopKSAE.from_pretrained(arguments.sae)
    catalog = FeatureCatalog.load(arguments.sae, sae.fingerprint)
    manifest = json.loads(arguments.manifest.read_text(encoding="utf-8"))
    corpora = {name: entry for name, entry in manifest.items() if entry["role"] == "passage"}
    queries = sum(entry["sentences"] for entry in corpora.values())
    queries += sum(entry["kept"] for entry in manifest.values() if entry["role"] == "query")
    named = [feature for feature in map(catalog.__getitem__, range(len(catalog))) if feature.label]
    frequent = sorted(named, key=lambda feature: -feature.frequency)
    metrics = sae.config.metrics
    card = CARD.format(
        n=f"{sae.config.n:,}",
        k=sae.config.k,
        k_labels=sae.config.k_labels,
        fingerprint=sae.fingerprint,
        figures="\n".join(figures(sae, arguments.data / name) for name in SETS),
        labelled=f"{int(metrics['labelled']):,}",
        random=metrics["auroc_random"],
        hard=metrics["auroc_hard"],
        examples="; ".join(feature.label for feature in frequent[:EXAMPLES]) + ".",
        total=f"{sum(entry['kept'] for entry in corpora.values()):,}",
        queries=f"{queries:,}",
        sources="\n".join(source(name, entry) for name, entry in manifest.items()),
    )
    (arguments.sae / "README.md").write_text(card, encoding="utf-8")
    sys.stdout.write(card)


def figures(sae: TopKSAE, folder: Path) -> str:
    """One row of the table of figures."""
    judged = read_retrieval_set(folder)
    found = measure_fidelity(sae, judged, embed_set(judged, CachedEmbedder(SentenceTransformerEmbedder())))
    kept = {row.name: row.retention["ndcg@10"] for row in found.rows}
    columns = [kept[name] for name in ("reconstructed", "latent", "latent_damped")] + [found.fvu_documents]
    return f"| {folder.name} | " + " | ".join(f"{value:.3f}" for value in columns) + " |"


def source(name: str, entry: dict[str, str | int]) -> str:
    """One row of the table of sources."""
    where = f" ({entry['repository']} at {str(entry['commit'])[:10]})" if "repository" in entry else ""
    count = f"{entry['kept']:,}" + (" (queries)" if entry["role"] == "query" else "")
    return f"| {name} | {count} | {entry['what']}{where} | {entry['licence']} |"


if __name__ == "__main__":
    main()
