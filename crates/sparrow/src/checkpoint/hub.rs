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

/// What the environment says of the hub, in the words and the order of Python's `huggingface_hub`.
#[cfg(feature = "hub")]
#[derive(Debug)]
struct HubSettings {
    cache: PathBuf,
    /// The variable that forbids to ask the hub.
    offline: Option<&'static str>,
    token: Option<String>,
    endpoint: Option<String>,
}

#[cfg(feature = "hub")]
impl HubSettings {
    /// `variable` reads the environment; what is empty counts as unset.
    fn read(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Self {
        let set = |name: &'static str| variable(name).filter(|value| !value.is_empty());
        let text = |name| set(name).and_then(|value| value.into_string().ok());
        let user = set("HOME").or(set("USERPROFILE")).map_or_else(|| PathBuf::from("."), PathBuf::from);
        // `~` is left to programs where a variable is set in a file rather than in a shell.
        let path = |name| {
            let path = PathBuf::from(set(name)?);
            Some(path.strip_prefix("~").map_or(path.clone(), |below| user.join(below)))
        };
        let base = path("XDG_CACHE_HOME").unwrap_or_else(|| user.join(".cache"));
        let home = path("HF_HOME").unwrap_or_else(|| base.join("huggingface"));
        let cache = path("HF_HUB_CACHE").or(path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub"));
        let yes = |value: &String| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str());
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|name| set(name).is_some());
        let kept = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = text("HF_TOKEN").or(text("HUGGING_FACE_HUB_TOKEN")).or_else(|| std::fs::read_to_string(kept).ok());
        HubSettings {
            cache,
            offline: offline.filter(|name| text(name).as_ref().is_some_and(yes)),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            endpoint: text("HF_ENDPOINT"),
        }
    }
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
    let settings = HubSettings::read(|name| std::env::var_os(name));
    let cache = Cache::new(settings.cache);
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
    if let Some(variable) = settings.offline {
        return Err(hint(format!("{held}, and {variable} is set")));
    }
    let mut api = ApiBuilder::from_cache(cache).with_token(settings.token).with_progress(true).with_retries(0);
    if let Some(endpoint) = settings.endpoint {
        api = api.with_endpoint(endpoint);
    }
    let api = api.build().map_err(|e| hint(e.to_string()))?;
    // The client waits as long as the system does; where a firewall drops packets that is minutes.
    let (send, answer) = std::sync::mpsc::channel();
    let asked = api.repo(repo.clone());
    let asking = std::thread::Builder::new().spawn(move || send.send(asked.info()));
    asking.map_err(|e| hint(format!("{held}, and no thread could be started to ask the hub ({e})")))?;
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

#[cfg(all(test, feature = "hub"))]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> HubSettings {
        let value = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
        HubSettings::read(value)
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_looks() {
        let all = [
            ("HF_HUB_CACHE", "/a", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b", "/b"),
            ("HF_HOME", "~/c", "/home/me/c/hub"),
            ("XDG_CACHE_HOME", "/d", "/d/huggingface/hub"),
            ("HOME", "/home/me", "/home/me/.cache/huggingface/hub"),
        ];
        for (first, (_, _, cache)) in all.iter().enumerate() {
            let mut variables: Vec<_> = all[first..].iter().map(|&(name, value, _)| (name, value)).collect();
            assert_eq!(settings(&variables).cache, Path::new(cache));
            variables.insert(0, (all[first.saturating_sub(1)].0, if first > 0 { "" } else { "/a" }));
            assert_eq!(settings(&variables).cache, Path::new(cache), "what is empty counts as unset");
        }
    }

    #[test]
    fn offline_is_what_huggingface_hub_calls_so() {
        for (variables, offline) in [
            (&[][..], None),
            (&[("HF_HUB_OFFLINE", "1")][..], Some("HF_HUB_OFFLINE")),
            (&[("HF_HUB_OFFLINE", "yes")], Some("HF_HUB_OFFLINE")),
            (&[("HF_HUB_OFFLINE", ""), ("TRANSFORMERS_OFFLINE", "True")], Some("TRANSFORMERS_OFFLINE")),
            (&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")], None),
            (&[("HF_HUB_OFFLINE", "false")], None),
        ] {
            assert_eq!(settings(variables).offline, offline, "{variables:?}");
        }
        assert_eq!(settings(&[("HF_TOKEN", " t\n"), ("HF_HOME", "/none")]).token.as_deref(), Some("t"));
    }
}
