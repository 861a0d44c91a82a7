//! `--model org/name[@revision]`: the hub's standard cache, filled through the `hf-hub` crate.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The directory of a model: `model` itself if it is one, else the hub's snapshot of `org/name[@revision]`.
///
/// # Errors
/// If `model` is neither a directory nor a hub id, or the hub cannot be reached and the cache does not hold it.
pub fn resolve(model: &str) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.exists() || !looks_like_hub_id(model) {
        super::require_dir(path)?;
        return Ok(path.to_owned());
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
            "{model}: {reason}; offline, download the model elsewhere and pass its directory, or put it at {} \
             (config.json, *.safetensors, tokenizer.json)",
            snapshots.join(revision).display()
        ))
    };
    let snapshot = |config: PathBuf| config.parent().map(Path::to_owned).ok_or_else(|| hint("no snapshot".into()));
    let complete = |dir: &Path| super::Checkpoint::open(dir).is_ok() && dir.join("tokenizer.json").is_file();
    let by_revision = snapshots.join(revision);
    let cached = cache.repo(repo.clone()).get("config.json").or(Some(by_revision.join("config.json")));
    if let Some(dir) = cached.filter(|c| c.is_file()).and_then(|c| c.parent().map(Path::to_owned))
        && complete(&dir)
    {
        return Ok(dir);
    }
    if std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !v.is_empty() && v != "0") {
        return Err(hint("not in the cache, and HF_HUB_OFFLINE is set".into()));
    }
    let api = ApiBuilder::from_env().with_progress(true).with_retries(0).build();
    let api = api.map_err(|e| hint(e.to_string()))?.repo(repo);
    let info = api.info().map_err(|e| hint(format!("the hub cannot be reached ({e})")))?;
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
