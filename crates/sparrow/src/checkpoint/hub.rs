//! `--model org/name[@revision]`: the hub's standard cache, filled through the `hf-hub` crate.

use std::path::{Path, PathBuf};

use super::gguf::Gguf;
use crate::error::{Error, Result};

/// The directory of a model: `model` itself if it is one, else the hub's snapshot of `org/name[@revision]`.
///
/// # Errors
/// If `model` is neither a directory nor a hub id, or the hub cannot be reached and the cache does not hold it.
pub fn resolve(model: &str) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.exists() || !looks_like_hub_id(model) {
        if !Gguf::is_at(path) {
            super::require_dir(path)?;
        }
        return Ok(path.to_owned());
    }
    let revision = model.split_once('@').map(|(_, revision)| revision);
    if revision.is_some_and(|r| r.is_empty() || r.starts_with('/') || r.split(['/', '\\']).any(|part| part == "..")) {
        return Err(Error::Hub(format!("{model}: what follows @ must be a branch, a tag or a commit")));
    }
    fetch(model)
}

fn looks_like_hub_id(model: &str) -> bool {
    let name = model.split('@').next().unwrap_or(model);
    let mut parts = name.split('/');
    let part = |p: Option<&str>| {
        p.is_some_and(|p| {
            !p.is_empty()
                && !p.starts_with('.')
                && p.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        })
    };
    part(parts.next()) && part(parts.next()) && parts.next().is_none()
}

#[cfg(not(feature = "hub"))]
fn fetch(model: &str) -> Result<PathBuf> {
    Err(Error::Hub(format!(
        "{model} is not a directory, and this build has no hub support (feature \"hub\"): \
         download the model and pass its directory"
    )))
}

/// How long the hub may take to say which files a model has.
#[cfg(feature = "hub")]
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

#[cfg(feature = "hub")]
fn fetch(model: &str) -> Result<PathBuf> {
    use hf_hub::api::sync::ApiBuilder;
    use hf_hub::{Cache, Repo, RepoType};

    let (name, revision) = model.split_once('@').unwrap_or((model, "main"));
    let repo = Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned());
    let cache = Cache::from_env();
    let snapshots = cache.path().join(repo.folder_name()).join("snapshots");
    let hint = |reason: String| {
        Error::Hub(format!(
            "{model} is no directory here, and as a hub id: {reason}; offline, download the model elsewhere and pass its \
             directory, or put it at {} (config.json, *.safetensors, tokenizer.json)",
            snapshots.join(revision).display()
        ))
    };
    let snapshot = |config: PathBuf| config.parent().map(Path::to_owned).ok_or_else(|| hint("no snapshot".into()));
    let complete = |dir: &Path| super::Checkpoint::open(dir).is_ok() && dir.join("tokenizer.json").is_file();
    let by_revision = snapshots.join(revision);
    let cached = cache.repo(repo.clone()).get("config.json").or(Some(by_revision.join("config.json")));
    let cached = cached.filter(|c| c.is_file()).and_then(|c| c.parent().map(Path::to_owned));
    let held = match cached {
        Some(dir) if complete(&dir) => return Ok(dir),
        Some(dir) => format!("the cache has only a part of it, at {}", dir.display()),
        None => "not in the cache".to_owned(),
    };
    if std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !v.is_empty() && v != "0") {
        return Err(hint(format!("{held}, and HF_HUB_OFFLINE is set")));
    }
    let api = ApiBuilder::from_env().with_progress(true).with_retries(0).build();
    let api = api.map_err(|e| hint(e.to_string()))?;
    // The client waits as long as the system does; where a firewall drops packets that is minutes.
    let (send, answer) = std::sync::mpsc::channel();
    let asked = api.repo(repo.clone());
    std::thread::spawn(move || send.send(asked.info()));
    let silent = format!("{held}, and the hub did not answer within {} s", PATIENCE.as_secs());
    let info = answer.recv_timeout(PATIENCE).map_err(|_| hint(silent))?;
    let info = info.map_err(|e| hint(format!("{held}, and asking the hub failed ({e})")))?;
    let api = api.repo(repo);
    let wanted = |file: &str| {
        let plain = !file.contains('/');
        plain && (file.ends_with(".json") || file.ends_with(".safetensors") || file.ends_with(".jinja"))
    };
    let mut dir = None;
    for file in info.siblings.iter().map(|s| s.rfilename.as_str()).filter(|f| wanted(f)) {
        let path = api.get(file).map_err(|e| hint(format!("downloading {file} failed ({e})")))?;
        if file == "config.json" {
            dir = Some(snapshot(path)?);
        }
    }
    let dir = dir.ok_or_else(|| hint("the repository has no config.json".into()))?;
    super::require_dir(&dir)?;
    Ok(dir)
}
