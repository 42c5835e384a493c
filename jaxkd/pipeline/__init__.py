"""One configuration file, an ordered list of stages, one run directory.

    python -m jaxkd run digits            # a shipped configuration, or your own file
    python -m jaxkd resume runs/digits/2026-01-31-12-00-00

A configuration (`config.Config`, TOML) names the data, the models and the stages, each
of which changes one model: `train`, `distill`, `transfer`, `prune`, `quantize`,
`search`, `finetune`, `evaluate`, `export`, each a class of `jaxkd.pipeline.stages`. A
run is one seed. It can be killed at any moment and resumed; on the same device the
outcome is the same, bit for bit. SIGTERM, which schedulers send, is one Ctrl-C: the
epoch under way is finished and saved.

A distill stage may name one of `jaxkd.recipes` in place of its losses. Epochs, batch
size, optimizer and schedule are the stage's, for every part of the recipe; with
`published = true` the last two are the recipe's. Lengths of first parts and warm-ups
are the published ones in proportion to the epochs. The teacher of "mutual" is the peer,
of which nothing is kept; of "mean_teacher", the average is kept; "simkd" makes of the
model the student with the teacher's classifier.

One process makes a run. Of several processes of one job (see `jaxkd.processes`) the
first makes it, and the others end.

The run directory, RUN, format 1. It must be new or empty. Every file but metrics.jsonl
and the journals is written whole or not at all, and all that `resume` reads back is
compared with its checksum; what is damaged is made again. `jaxkd.json` marks the
directories that may be replaced (see `jaxkd.store`)::

    config.toml       the configuration as resolved: every default is written out;
                      `run` takes it again as it is
    run.json          {"format": 1, "name", "seed", "started" (UTC, ISO 8601), "jaxkd",
                      "versions": {...}, "device", "git": {"commit", "changed"} or null,
                      "command": [...], "data": {"name", "kind", "classes": [names],
                      "image_shape", "train", "validation", "test" (numbers of images),
                      "fingerprint", "preprocessing" (from an image file to the
                      network: "size", "channels", "resize", "range", "mean",
                      "deviation", "classes", and the shares "test" and "validation")},
                      "sha256": {"test/labels.npy": ...},
                      "checksum" (of the rest)}
    metrics.jsonl     one row an epoch, candidate or measurement, below
    results.json      rewritten after each stage, below
    lock              held while a process works here
    test/labels.npy   int32 [n], the test split in its own order
    test/index.npy    int32 [n], places in the official split
    test/images.npy   uint8 [at most 1000, h, w, c], the first of the test images
    models/NAME/      the final variables of each model, in the form of final/ below:
                      `checkpoint.load` reads {"params", "state"}; meta.json has its
                      recipe and its "preprocessing"
    stages/00-NAME/   one folder for each stage, NAME as in the configuration; emptied
                      if the stage is run again from other inputs:
      checkpoints/000012/   (of a recipe in parts, in part-0/, part-1/, ...)
                            after 12 steps: data/ (orbax), meta.json, jaxkd.json with
                            the sha256 of each file
      final/                what the stage has made, in the same form; a stage whose
                            final/ is whole is done
      logits.npy            float32 [n, classes], the changed model on the test images
      journal.jsonl         of a search
      sensitivities.json    of a prune stage by sensitivity
      groups.txt            of a prune stage: what was tied together
      files/                of an export stage: NAME.tflite, NAME.onnx, ...; and
                            NAME.files.json with their sha256, which `eval` compares

A row of metrics.jsonl has "stage" (its name), "kind", "model", and

* of a training epoch: "epoch" (from 1), "seconds", "images/s", "loss", "loss/NAME" for
  each term, "norm/grad", and "accuracy" and "nll" on the validation images; of a recipe
  in parts, "part" (its name), and epochs are counted through all parts;
* of a search: "trial" (from 1), "tokens", "values", "reward" (null for a candidate that
  failed, with "error"), "macs", "parameters", "seconds";
* of a prune stage: "dropped" (units removed by group), "macs", "parameters";
* of a transfer: "copied" (how many variables), "fresh" (paths of the others); of a
  quantize stage without epochs: "calibrated" (images); of an export: "files";
* of an evaluate stage: "split", "images" (how many), "accuracy", "nll".

"seconds" and "images/s" are timings; all else is the same in each run of a
configuration. After a resume the file has each row once, as if it had never stopped.

results.json is `{"format": 1, "name", "seed", "teacher", "finished", "rows"}`. Here
"teacher" names the model whose predictions the others are compared with, or is null. A
row describes a model as it is after a stage; models that came with weights have a row
of their own before the stages, with index -1 and the kind "weights"::

    {"index", "stage", "kind", "model", "directory" (of the logits, relative to RUN),
     "accuracy", "nll", "ece" (on the test images),
     "accuracy_by_class" (by label; null for a class without test images),
     "agreement" (with the teacher on the test images; null before there is one),
     "parameters", "macs" (of one image), "bytes" (of the variables, kernels at their
     quantized width), "quantized" (whether), "epochs", "seconds" (of the stage, since
     its last resume), "images/s" (median of its training epochs, or null),
     "digest" (sha256 of the variables), "files": [], "logits_sha256" (of
     logits.npy)}

"files" of an export stage has, for each file, "path" (relative to RUN), "format",
"bytes", "sha256", "milliseconds" (one image, one thread, or null), "difference" (to JAX
on test images, or null) and "accuracy", "nll" (of the file itself, by its runtime, or
null).
"""
