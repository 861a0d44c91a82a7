//! What a directory has that lacks what it needs, and what to do about it.

use std::path::Path;

/// A kind of file that is there instead, and the mend; `FILE` stands for its path.
struct Instead {
    is: fn(&str) -> bool,
    mend: &'static str,
}

/// The first that is there is told.
const INSTEAD: [Instead; 7] = [
    Instead {
        is: |name| name.starts_with("adapter_"),
        mend: "FILE belongs to an adapter (LoRA), which needs its base model: merge the two (peft's merge_and_unload) and pass \
               the result",
    },
    Instead { is: |name| name.ends_with(".gguf"), mend: "pass FILE itself" },
    Instead {
        is: |name| name.starts_with("model-") && name.ends_with(".safetensors"),
        mend: "FILE is a shard: download the others and model.safetensors.index.json, which says what is in them",
    },
    Instead {
        is: |name| name == "params.json" || name.starts_with("consolidated."),
        mend: "FILE is in the format of the model's makers: take the Hugging Face format of the same model",
    },
    Instead {
        is: |name| name.ends_with(".safetensors"),
        mend: "if FILE holds the whole model, rename it to model.safetensors",
    },
    Instead {
        is: |name| [".bin", ".pt", ".pth"].iter().any(|end| name.ends_with(end)),
        mend: "FILE holds pickled weights: convert the model with transformers' save_pretrained",
    },
    Instead {
        is: |name| name == "snapshots",
        mend: "FILE holds the versions of a model in the hub's cache: pass the id org/name, or one of them",
    },
];

/// What to do about a directory that lacks its weights or its configuration, judged by the files that it has.
pub(super) fn mend(dir: &Path, otherwise: &str) -> String {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    let found = INSTEAD.iter().find_map(|instead| {
        let name = names.iter().find(|name| (instead.is)(name))?;
        Some(instead.mend.replace("FILE", &dir.join(name).display().to_string()))
    });
    found.unwrap_or_else(|| otherwise.to_owned())
}
